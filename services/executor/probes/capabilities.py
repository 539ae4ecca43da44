"""What this node can do for jobs, one capability each: level, and where it is not "enforced", why and the repair. Pure.

The names are stable, docs/operations.md lists them. Not here: trying (`trials.py`, `limits.py`), showing (`joblet
doctor`, NodeService.GetInfo).
"""

from typing import Final, NamedTuple

from common.messages.jobs import Capability
from services.executor.host import NAMESPACES, SYSCALLS, HostFacts
from services.executor.probes.outcomes import Outcomes
from services.executor.probes.repairs import Surroundings, namespace_repair

ENFORCED: Final = "enforced"
DEGRADED: Final = "degraded"
MISSING: Final = "missing"

_NO_TREE: Final = "for more, mount -t cgroup2 cgroup2 /sys/fs/cgroup/unified"
_NO_IDMAP: Final = "a job sees the files of the host's root as nobody's; put joblet.base_dir on ext4, xfs or btrfs"
_SHARED_INODES: Final = (
    "jobs can see by inotify which programs of /usr others open, and lock its files: use a kernel with overlayfs"
)
_ROOTLESS: Final = (
    "rootless: the jobs of all owners are uid {uid} on the host and keep that user's groups, so that nothing keeps"
    " apart what they leave outside of their sandboxes: run the node as root"
)


class Findings(NamedTuple):
    """All that was found out about a host."""

    facts: HostFacts
    uid: int
    around: Surroundings
    outcomes: Outcomes
    limits: tuple[Capability, ...]
    networks: tuple[Capability, ...]
    seccomp_failure: str  # why there is no filter; "": there is one
    tree: bool  # jobs have a group in the v2 hierarchy
    no_groups: str  # why jobs have no groups at all; "": they have
    pressure: bool  # the kernel tells it


def capabilities(found: Findings) -> tuple[Capability, ...]:
    """What jobs can ask of this node, and for what they cannot, why and what to do about it."""
    return (
        *found.limits,
        _plain("limit.open_files", found),
        _plain("limit.file_size", found),
        Capability(name="limit.timeout", level=ENFORCED),  # by the job's monitor
        *(_namespace(word, found) for word in NAMESPACES),
        _owner_range(found),
        _seccomp(found),
        _idmap(found),
        _own_inodes(found),
        *found.networks,
        _clone_into(found),
        _kill(found),
        *(_syscall(name, found) for name in SYSCALLS),
        _plain("kernel.pidfd", found),
        _pressure(found),
        _punch_hole(found.facts),
        _core_pattern(found.around.core_handler),
    )


def missing(name: str, *words: str) -> Capability:
    """What asking for is refused, with the words that are not empty."""
    return Capability(name=name, level=MISSING, detail="; ".join(filter(None, words)))


def _plain(name: str, found: Findings) -> Capability:
    failure = found.outcomes.of(name)
    return Capability(name=name, level=ENFORCED) if failure is None else missing(name, failure.text)


def _namespace(word: str, found: Findings) -> Capability:
    name = f"namespace.{word}"
    failure = found.outcomes.of(name)
    if failure is None:
        return Capability(name=name, level=ENFORCED)
    return missing(name, failure.text, namespace_repair(word, failure, found.around))


def _owner_range(found: Findings) -> Capability:
    name = "owner.range"
    if found.facts.root:
        return Capability(name=name, level=ENFORCED)
    return missing(name, _ROOTLESS.format(uid=found.uid))


def _seccomp(found: Findings) -> Capability:
    if found.seccomp_failure:
        return missing("seccomp", found.seccomp_failure)
    failure = found.outcomes.of("seccomp")
    if failure is None:
        return Capability(name="seccomp", level=ENFORCED)
    return missing("seccomp", failure.text, "use a kernel with CONFIG_SECCOMP_FILTER")


def _idmap(found: Findings) -> Capability:
    name = "mount.idmap"
    if not found.facts.root:
        return missing(name, "only root can map the owners of files: run the node as root")
    failure = found.outcomes.of(name)
    if failure is None:
        return Capability(name=name, level=ENFORCED)
    return Capability(name=name, level=DEGRADED, detail=f"{failure.text}; {_NO_IDMAP}")


def _own_inodes(found: Findings) -> Capability:
    name = "mount.own_inodes"
    failure = found.outcomes.of(name)
    if failure is None:
        return Capability(name=name, level=ENFORCED)
    return Capability(name=name, level=DEGRADED, detail=f"{failure.text}; {_SHARED_INODES}")


def _clone_into(found: Findings) -> Capability:
    name = "cgroup.clone_into"
    return _in_tree(name, found, "a job puts itself into its groups before it executes anything") or missing(
        name, *_why(name, found), "use Linux 5.7 or newer"
    )


def _kill(found: Findings) -> Capability:
    name, otherwise = "cgroup.kill", "a job's processes are frozen and killed one by one"
    told = "; ".join((*_why(name, found), f"{otherwise}: Linux 5.14 kills them at once"))
    return _in_tree(name, found, otherwise) or Capability(name=name, level=DEGRADED, detail=told)


def _in_tree(name: str, found: Findings, otherwise: str) -> Capability | None:
    """What the v2 hierarchy gives; `otherwise`: how it goes on a host that has none. None: it is there and cannot."""
    if found.no_groups:
        return missing(name, found.no_groups)
    if not found.tree:
        return Capability(name=name, level=DEGRADED, detail=f"{otherwise}: {_NO_TREE}")
    return Capability(name=name, level=ENFORCED) if found.outcomes.of(name) is None else None


def _why(name: str, found: Findings) -> tuple[str, ...]:
    failure = found.outcomes.of(name)
    return () if failure is None else (failure.text,)


def _syscall(name: str, found: Findings) -> Capability:
    if name in found.facts.syscalls:
        return Capability(name=f"kernel.{name}", level=ENFORCED)
    return missing(f"kernel.{name}", f"Linux {SYSCALLS[name][1]} has it, and a container's filter may refuse it")


def _pressure(found: Findings) -> Capability:
    if found.pressure:
        return Capability(name="pressure", level=ENFORCED)
    return missing(
        "pressure", "the kernel does not tell how long jobs wait: boot with psi=1, on a host with cgroups v2"
    )


def _core_pattern(handler: str) -> Capability:
    name = "host.core_pattern"
    if not handler:
        return Capability(name=name, level=ENFORCED)
    told = f"{handler} runs as the host's root when a job crashes: sysctl -w kernel.core_pattern=core"
    return Capability(name=name, level=DEGRADED, detail=told)


def _punch_hole(facts: HostFacts) -> Capability:
    name = "journal.punch_hole"
    if not facts.punch_hole_failure:
        return Capability(name=name, level=ENFORCED)
    kept = "journals keep their space until their job's end: use ext4, xfs or btrfs"
    return missing(name, facts.punch_hole_failure, kept)
