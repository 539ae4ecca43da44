"""The node in facts: what the host is, and what was tried on it. NodeService.GetInfo, `joblet doctor`.

Here: trying everything with the node's real parts, in their order. Not here: the trials, and what they mean.
"""

import contextlib
import importlib.metadata
import os
from pathlib import Path
from typing import NamedTuple

from common.config.layout import layout_of
from common.config.load import node_id
from common.config.settings import Settings
from common.errors import JobletError
from common.messages.jobs import Capability, Limits, NodeFacts
from services.executor.cgroups import pressure
from services.executor.cgroups.driver import CgroupDriver
from services.executor.host import HostFacts
from services.executor.probes.capabilities import Findings, capabilities
from services.executor.probes.limits import GIB, probe_group, try_limits
from services.executor.probes.outcomes import try_all
from services.executor.probes.repairs import read_surroundings
from services.executor.probes.trials import Request


class Parts(NamedTuple):
    """Of the node, as far as it depends on them what jobs can ask for."""

    facts: HostFacts
    driver: CgroupDriver
    seccomp: bytes  # the system call filter of jobs
    seccomp_failure: str  # why it is empty
    networks: tuple[Capability, ...]


def node_facts(settings: Settings, parts: Parts) -> NodeFacts:
    """The node; no job runs yet. Takes some tenths of a second, and leaves nothing."""
    facts = parts.facts
    return NodeFacts(
        node_id=node_id(settings),
        version=_version(),
        kernel=facts.kernel,
        cgroup_version=parts.driver.version,
        cpus=len(facts.cpus),
        memory_bytes=facts.memory_bytes,
        running_jobs=0,
        capabilities=capabilities(_find_out(settings, parts)),
    )


def _find_out(settings: Settings, parts: Parts) -> Findings:
    facts, driver = parts.facts, parts.driver
    with contextlib.ExitStack() as stack:
        try:
            plan = stack.enter_context(probe_group(driver, Limits()))
        except JobletError as error:
            group, no_groups = "", str(error)
        else:
            group, no_groups = plan.clone_into, "" if plan.directories else _no_groups(driver)
        request = Request(
            directory=str(existing(layout_of(settings).jobs)),
            range_first=settings.joblet.jobs.uid_first,
            clone_into=group,
        )
        outcomes = try_all(request, parts.seccomp)
        pressures = pressure.readable(group) if group else frozenset()
    return Findings(
        facts=facts,
        uid=os.geteuid(),
        around=read_surroundings(root=facts.root, namespaces=facts.namespaces),
        outcomes=outcomes,
        limits=try_limits(driver, facts.cpus),
        networks=parts.networks,
        seccomp_failure=parts.seccomp_failure,
        tree=bool(group),
        no_groups=no_groups,
        pressure=pressures == frozenset(pressure.FILES),
    )


def _no_groups(driver: CgroupDriver) -> str:
    return "; ".join(dict.fromkeys(repair for _, repair in driver.unsupported(Limits(memory_bytes=GIB))))


def existing(path: Path) -> Path:
    """`path`, or the directory above it that there is."""
    return next(each for each in (path, *path.parents) if each.is_dir())


def _version() -> str:
    try:
        return importlib.metadata.version("joblet")
    except importlib.metadata.PackageNotFoundError:
        return "unknown"  # run from a checkout that was never installed
