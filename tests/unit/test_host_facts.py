"""Which groups and capabilities are found on hosts of several kinds."""

from pathlib import Path

import pytest

from common.config.settings import Joblet, Settings
from common.messages.jobs import Limits
from services.executor.cgroups.memory import MemoryDriver
from services.executor.host import NAMESPACES, SYSCALLS, CgroupRoots, HostFacts, capabilities, cgroup_roots, probe_host

DEBIAN = "26 22 0:23 / /sys/fs/cgroup rw,nosuid,nodev,noexec,relatime shared:4 - cgroup2 cgroup2 rw,nsdelegate\n"
HYBRID = """\
27 1 254:0 / / rw,relatime - ext4 /dev/vda rw,discard
31 23 0:28 / /sys/fs/cgroup rw,relatime - tmpfs tmpfs rw,mode=755
32 31 0:29 / /sys/fs/cgroup/cpu,cpuacct rw,relatime - cgroup cgroup rw,cpu,cpuacct
35 31 0:32 / /sys/fs/cgroup/memory rw,relatime - cgroup cgroup rw,memory
40 31 0:37 / /sys/fs/cgroup/systemd rw,relatime - cgroup cgroup rw,name=systemd
41 31 0:38 / /sys/fs/cgroup/unified rw,relatime - cgroup2 cgroup2 rw
"""
HYBRID_OWN = "9:name=systemd:/\n4:memory:/service/a\n1:cpu,cpuacct:/\n0::/user/b\n"
CONTAINER = "26 22 0:23 /docker/abc /sys/fs/cgroup ro,nosuid - cgroup2 cgroup rw\n"


def everything(_path: str) -> bool:
    """A host where all can be written."""
    return True


def test_v2_host() -> None:
    """Of a v2 host the groups go below the root of the hierarchy."""
    roots = cgroup_roots(DEBIAN, "0::/init.scope\n", writable=everything)
    assert roots == CgroupRoots("/sys/fs/cgroup", ())
    assert roots.version == "v2"


def test_hybrid_host() -> None:
    """Each controller at its mount, the named hierarchy left out, and the v2 tree."""
    roots = cgroup_roots(HYBRID, HYBRID_OWN, writable=everything)
    assert roots.tree == "/sys/fs/cgroup/unified"
    assert dict(roots.controllers) == {
        "cpu": "/sys/fs/cgroup/cpu,cpuacct",
        "cpuacct": "/sys/fs/cgroup/cpu,cpuacct",
        "memory": "/sys/fs/cgroup/memory",
    }
    assert roots.version == "hybrid"


def test_v1_host() -> None:
    """Without a v2 hierarchy the host is v1."""
    lines = [line for line in HYBRID.splitlines() if "cgroup2" not in line]
    assert cgroup_roots("\n".join(lines), HYBRID_OWN, writable=everything).version == "v1"


def test_delegated_groups() -> None:
    """Where the root is not writable the process's own group is taken, which may have been delegated to it."""
    delegated = {"/sys/fs/cgroup/memory/service/a", "/sys/fs/cgroup/unified/user/b"}
    roots = cgroup_roots(HYBRID, HYBRID_OWN, writable=delegated.__contains__)
    assert roots == CgroupRoots("/sys/fs/cgroup/unified/user/b", (("memory", "/sys/fs/cgroup/memory/service/a"),))


def test_inside_a_container() -> None:
    """The mount shows a part of the hierarchy: paths count from what is mounted; read-only is not writable."""
    asked: set[str] = set()

    def writable(path: str) -> bool:
        asked.add(path)
        return False

    assert cgroup_roots(CONTAINER, "0::/docker/abc\n", writable=writable).version == "none"
    assert asked == {"/sys/fs/cgroup"}
    own = cgroup_roots(CONTAINER, "0::/docker/abc/x\n", writable="/sys/fs/cgroup/x".__eq__)
    assert own.tree == "/sys/fs/cgroup/x"


def test_mount_points_with_spaces() -> None:
    """A space in a mount point is octal in mountinfo."""
    assert cgroup_roots(DEBIAN.replace("/sys/fs", "/my\\040fs"), "0::/\n", writable=everything).tree == "/my fs/cgroup"


@pytest.mark.parametrize("controllers", ["net_cls,net_prio", "freezer", "devices"])
def test_a_v2_host_with_a_stray_v1_mount(controllers: str) -> None:
    """Some programs mount a single old controller on a v2 host; the limits are still v2's."""
    stray = f"50 22 0:40 / /mnt/x rw - cgroup cgroup rw,{controllers}\n"
    assert cgroup_roots(DEBIAN + stray, "0::/\n", writable=everything).version == "v2"


def test_probe_of_this_host(tmp_path: Path) -> None:
    """The probe finds what every supported kernel has, changes nothing and leaves no file."""
    settings = Settings(joblet=Joblet(base_dir=str(tmp_path)))
    facts = probe_host(settings)
    assert facts.syscalls == frozenset(SYSCALLS)
    assert facts.cpus
    assert facts.memory_bytes > 2**20
    assert "mount" in facts.namespaces
    assert list(tmp_path.iterdir()) == []


def facts(**changes: object) -> HostFacts:
    """Facts of a host that has everything, changed as told."""
    plain: dict[str, object] = {
        "kernel": "6.1",
        "cgroup_version": "v2",
        "cgroup_tree": "/sys/fs/cgroup",
        "cgroup_controllers": (),
        "cpus": frozenset({0}),
        "memory_bytes": 2**30,
        "root": True,
        "syscalls": frozenset(SYSCALLS),
        "namespaces": frozenset(NAMESPACES),
        "punch_hole_failure": "",
    }
    return HostFacts(**{**plain, **changes})  # type: ignore[arg-type]  # a test's shorthand


def levels(facts: HostFacts, driver: MemoryDriver) -> dict[str, str]:
    """Name → level."""
    return {capability.name: capability.level for capability in capabilities(facts, driver)}


NOT_IN_THIS_RELEASE = {"limit.io", "namespace.user", "seccomp"}


def test_capabilities_of_a_complete_host() -> None:
    """All is enforced but what this release does not have, and that is said."""
    found = capabilities(facts(), MemoryDriver())
    assert {capability.name for capability in found if capability.level != "enforced"} == NOT_IN_THIS_RELEASE
    assert {capability.detail for capability in found if capability.level == "missing"} == {"not in this release"}
    assert {capability.name for capability in found} == NOT_IN_THIS_RELEASE | {
        "limit.cpu",
        "limit.cpu_weight",
        "limit.cpuset",
        "limit.memory",
        "limit.pids",
        *(f"namespace.{word}" for word in ("mount", "pid", "ipc", "uts", "cgroup", "net")),
        "journal.punch_hole",
    }


def test_capabilities_name_the_repair() -> None:
    """A limit that the driver refuses is missing with the driver's repair."""
    driver = MemoryDriver()
    driver.refused = (("memory_bytes", "mount it"),)
    found = {capability.name: capability for capability in capabilities(facts(), driver)}
    assert (found["limit.memory"].level, found["limit.memory"].detail) == ("missing", "mount it")
    assert driver.unsupported(Limits(memory_bytes=1)) == (("memory_bytes", "mount it"),)


def test_capabilities_without_root() -> None:
    """Namespaces need root in this release."""
    found = levels(facts(root=False), MemoryDriver())
    assert {found[f"namespace.{word}"] for word in NAMESPACES} == {"missing"}


def test_capabilities_of_an_old_kernel() -> None:
    """A missing system call takes away what needs it, with the Linux that brought it."""
    found = capabilities(facts(syscalls=frozenset(SYSCALLS) - {"mount_setattr"}), MemoryDriver())
    (mount,) = [capability for capability in found if capability.name == "namespace.mount"]
    assert mount.level == "missing"
    assert "mount_setattr (Linux 5.12)" in mount.detail
    assert levels(facts(namespaces=frozenset()), MemoryDriver())["namespace.net"] == "missing"


def test_a_file_system_that_cannot_punch_holes() -> None:
    """It is said where and why, and what to use instead."""
    found = capabilities(facts(punch_hole_failure="/mnt: Operation not supported"), MemoryDriver())
    (hole,) = [capability for capability in found if capability.name == "journal.punch_hole"]
    assert hole.level == "missing"
    assert hole.detail.startswith("/mnt: Operation not supported; ")
