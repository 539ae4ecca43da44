"""The one place that chooses a cgroup driver. Nobody else asks which version the host has."""

import hashlib
from pathlib import Path
from typing import Final

from common.config.layout import layout_of
from common.config.settings import DEFAULT_BASE_DIR, Settings
from common.errors import JobletError, Reason
from common.identifiers import parse_name
from services.executor.cgroups import delegation
from services.executor.cgroups.disks import Disk, disks_behind
from services.executor.cgroups.driver import CgroupDriver
from services.executor.cgroups.none import NoneDriver
from services.executor.cgroups.v1 import V1Driver
from services.executor.cgroups.v2 import V2Driver
from services.executor.host import HostFacts

NOTHING_DELEGATED: Final = (
    "no control group is delegated to this user: start the node by systemd-run --user --scope -p Delegate=yes"
    " on a host with cgroups v2, or as root"
)


def select_driver(facts: HostFacts, settings: Settings) -> CgroupDriver:
    """A driver for this host, prepared; without root, where nothing is delegated, one that makes no groups.

    Raises JobletError where root can make none.
    """
    parent = parent_name(settings)
    driver: CgroupDriver
    match facts.cgroup_version:
        case "v2" if facts.cgroup_tree is not None:
            driver = V2Driver(_v2_root(facts.cgroup_tree), parent=parent, cpus=facts.cpus, disks=job_disks(settings))
        case "v1" | "hybrid":
            driver = V1Driver(
                {name: Path(root) for name, root in facts.cgroup_controllers},
                tree=None if facts.cgroup_tree is None else Path(facts.cgroup_tree),
                parent=parent,
                cpus=facts.cpus,
                disks=job_disks(settings),
            )
        case _ if not facts.root:
            driver = NoneDriver(NOTHING_DELEGATED)
        case _:
            raise JobletError(
                Reason.PRECONDITION,
                "no cgroup file system is mounted that this process may write",
                detail="run the executor as root and mount one: mount -t cgroup2 cgroup2 /sys/fs/cgroup",
            )
    driver.prepare()
    return driver


def _v2_root(tree: str) -> Path:
    own_groups = Path("/proc/self/cgroup").read_text(encoding="utf-8", errors="surrogateescape")
    return delegation.jobs_root(
        Path(tree), own_groups=own_groups, marked=delegation.is_marked, writable=delegation.is_writable
    )


def job_disks(settings: Settings) -> tuple[Disk, ...]:
    """The disks behind what every job of this node sees."""
    jobs = settings.joblet.jobs
    rootfs = (jobs.rootfs,) if Path(jobs.rootfs).is_absolute() else ()
    return disks_behind((str(layout_of(settings).jobs), *jobs.read_only_paths, *rootfs))


def parent_name(settings: Settings) -> str:
    """Name of the group that holds this node's jobs.

    Two nodes on one host (two base directories) must not share it: each removes at its start the groups of jobs that
    it does not know. So a base directory that is not the default one is part of the name.
    """
    name = parse_name(settings.joblet.cgroup_parent, "cgroup parent")
    base = Path(settings.joblet.base_dir).resolve()
    if base == Path(DEFAULT_BASE_DIR):
        return name
    return f"{name}-{hashlib.sha256(bytes(base)).hexdigest()[:8]}"
