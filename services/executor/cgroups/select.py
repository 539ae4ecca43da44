"""The one place that chooses a cgroup driver. Nobody else asks which version the host has."""

import hashlib
from pathlib import Path

from common.config.settings import DEFAULT_BASE_DIR, Settings
from common.errors import JobletError, Reason
from common.identifiers import parse_name
from services.executor.cgroups.driver import CgroupDriver
from services.executor.cgroups.v1 import V1Driver
from services.executor.cgroups.v2 import V2Driver
from services.executor.host import HostFacts


def select_driver(facts: HostFacts, settings: Settings) -> CgroupDriver:
    """A driver for this host, prepared. Raises JobletError where no control group can be made."""
    parent = parent_name(settings)
    driver: CgroupDriver
    match facts.cgroup_version:
        case "v2" if facts.cgroup_tree is not None:
            driver = V2Driver(Path(facts.cgroup_tree), parent=parent, cpus=facts.cpus)
        case "v1" | "hybrid":
            driver = V1Driver(
                {name: Path(root) for name, root in facts.cgroup_controllers},
                tree=None if facts.cgroup_tree is None else Path(facts.cgroup_tree),
                parent=parent,
                cpus=facts.cpus,
            )
        case _:
            raise JobletError(
                Reason.PRECONDITION,
                "no cgroup file system is mounted that this process may write",
                detail="run the executor as root and mount one: mount -t cgroup2 cgroup2 /sys/fs/cgroup",
            )
    driver.prepare()
    return driver


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
