"""Which groups and capabilities are found on hosts of several kinds."""

import errno
from pathlib import Path
from typing import Any

import pytest

from common.config.settings import Joblet, Settings
from common.errors import JobletError, precondition
from common.identifiers import new_job_id
from common.messages.jobs import Capability, Limits
from services.executor.cgroups.driver import CgroupPlan
from services.executor.cgroups.memory import MemoryDriver
from services.executor.cgroups.none import NoneDriver
from services.executor.cgroups.select import select_driver
from services.executor.host import NAMESPACES, SYSCALLS, CgroupRoots, HostFacts, cgroup_roots, probe_host
from services.executor.probes.attempts import Failure
from services.executor.probes.capabilities import Findings, capabilities
from services.executor.probes.limits import limits_by_name, try_limits
from services.executor.probes.outcomes import Outcomes
from services.executor.probes.repairs import Surroundings

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


WORKS = Outcomes(
    dict.fromkeys(
        (
            *(f"namespace.{word}" for word in NAMESPACES),
            *("limit.open_files", "limit.file_size", "kernel.pidfd", "seccomp", "mount.idmap", "mount.own_inodes"),
            *("cgroup.clone_into", "cgroup.kill"),
        )
    )
)


def findings(**changes: Any) -> Findings:
    """What is found on a host that has everything, changed as told."""
    plain: dict[str, Any] = {
        "facts": facts(),
        "uid": 0,
        "around": Surroundings(
            root=True, sysctls={}, filtered=False, namespaces=frozenset(NAMESPACES), core_handler=""
        ),
        "outcomes": WORKS,
        "limits": try_limits(MemoryDriver(), frozenset({0})),
        "networks": (Capability(name="network.none", level="enforced"),),
        "seccomp_failure": "",
        "tree": True,
        "no_groups": "",
        "pressure": True,
    }
    return Findings(**{**plain, **changes})


def told(**changes: Any) -> dict[str, Capability]:
    """Name → capability."""
    return {each.name: each for each in capabilities(findings(**changes))}


def fails(name: str, number: int, text: str = "no") -> Outcomes:
    """All works but one thing."""
    return Outcomes({**WORKS.tried, name: Failure(number, text)})


def test_capabilities_of_a_complete_host() -> None:
    """All is enforced, each under its documented name; every name stands in the documentation."""
    found = told()
    # The driver of tests knows no file of the kernel's, so nothing kills a whole job.
    assert {name for name, each in found.items() if each.level != "enforced"} == {"memory.oom_group"}
    manual = Path("docs/operations.md").read_text(encoding="utf-8")
    assert not [name for name in found if f"`{name}`" not in manual]
    assert len(found) == len(capabilities(findings()))


def test_limits_name_the_repair_and_the_restriction() -> None:
    """A limit that the driver refuses is missing with its repair; one that cannot be written is missing, too."""
    driver = MemoryDriver()
    driver.refused = (("memory_bytes", "mount it"),)
    found = {each.name: each for each in try_limits(driver, frozenset({0}))}
    assert (found["limit.memory"].level, found["limit.memory"].detail) == ("missing", "mount it")
    assert (found["memory.oom_group"].level, found["memory.oom_group"].detail) == ("missing", "mount it")
    assert found["limit.pids"].level == "enforced"
    assert driver.present() == frozenset(), "nothing is left"
    assert {name.partition(".")[0] for name in limits_by_name(frozenset({0}))} == {"limit"}


def test_a_limit_that_is_not_what_was_written_is_missing() -> None:
    """The driver reads back; what it says is the detail."""

    class Deaf(MemoryDriver):
        def create(self, plan: CgroupPlan) -> None:
            raise precondition(f"the kernel holds 'max' in {plan.directories[0]}")

    assert {each.level for each in try_limits(Deaf(), frozenset({0}))} == {"missing"}


@pytest.mark.parametrize(
    ("name", "number", "text", "around", "words"),
    [
        ("user", errno.ENOSPC, "no", {"sysctls": {"user/max_user_namespaces": "0"}}, "sysctl -w user.max_user_namesp"),
        ("mount", errno.ENOSPC, "no", {"sysctls": {"user/max_mnt_namespaces": "0"}}, "sysctl -w user.max_mnt_namesp"),
        ("net", errno.ENOSPC, "no", {}, "too many are in use: sysctl -w user.max_net_namespaces="),
        ("ipc", errno.EINVAL, "no", {"namespaces": frozenset({"mount"})}, "built without ipc namespaces"),
        ("user", errno.ENOSYS, "no", {}, "Linux 5.14"),
        ("user", errno.ENOSYS, "no", {"filtered": True}, "seccomp=unconfined"),
        ("user", errno.EPERM, "no", {"filtered": True}, "seccomp=unconfined"),
        ("net", errno.EPERM, "no", {}, "this root lacks CAP_SYS_ADMIN"),
        ("pid", errno.EPERM, "mount: no: /proc", {"root": False}, "systempaths=unconfined"),
        ("net", errno.EPERM, "no", {"root": False}, "let ordinary users make user namespaces"),
        (
            *("uts", errno.EPERM, "no"),
            {"root": False, "sysctls": {"kernel/unprivileged_userns_clone": "0"}},
            "sysctl -w kernel.unprivileged_userns_clone=1",
        ),
        (
            *("user", errno.EACCES, "no"),
            {"root": False, "sysctls": {"kernel/apparmor_restrict_unprivileged_userns": "1"}},
            "kernel.apparmor_restrict_unprivileged_userns=0",
        ),
    ],
)
def test_a_namespace_that_cannot_be_had_comes_with_the_repair(
    name: str, number: int, text: str, around: dict[str, Any], words: str
) -> None:
    """By what surrounds the process: sysctls, a container's filter and masks, the kernel's configuration."""
    surroundings = findings().around._replace(**around)
    found = told(outcomes=fails(f"namespace.{name}", number, text), around=surroundings)[f"namespace.{name}"]
    assert found.level == "missing"
    assert found.detail.startswith(text)
    assert words in found.detail


def test_capabilities_without_root() -> None:
    """Namespaces work; what only root has is missing, and it is said that owners are not kept apart."""
    found = told(facts=facts(root=False), uid=1234)
    assert found["namespace.user"].level == "enforced"
    assert found["owner.range"].level == "missing"
    assert "uid 1234" in found["owner.range"].detail
    assert found["mount.idmap"].level == "missing"


def test_capabilities_without_groups() -> None:
    """Everything of groups is missing for one reason, whatever was tried."""
    driver = NoneDriver("ask for one")
    found = told(limits=try_limits(driver, frozenset({0})), tree=False, no_groups="ask for one")
    of_groups = {name for name, each in found.items() if each.detail == "ask for one"}
    assert of_groups == {*limits_by_name(frozenset({0})), "memory.oom_group", "cgroup.clone_into", "cgroup.kill"}
    assert {found[name].level for name in of_groups} == {"missing"}


def test_capabilities_of_other_hosts() -> None:
    """A v1 host goes on without the tree; an old kernel, a foreign file system and a broken filter are told."""
    old = told(tree=False)
    assert (old["cgroup.clone_into"].level, old["cgroup.kill"].level) == ("degraded", "degraded")
    assert told(outcomes=fails("cgroup.kill", errno.ENOENT))["cgroup.kill"].level == "degraded"
    assert told(outcomes=fails("cgroup.clone_into", errno.EINVAL))["cgroup.clone_into"].level == "missing"
    assert told(outcomes=fails("mount.idmap", errno.EINVAL))["mount.idmap"].level == "degraded"
    lacking = told(facts=facts(syscalls=frozenset(SYSCALLS) - {"mount_setattr"}))["kernel.mount_setattr"]
    assert (lacking.level, "Linux 5.12" in lacking.detail) == ("missing", True)
    assert told(seccomp_failure="libseccomp is missing")["seccomp"].detail == "libseccomp is missing"
    assert told(outcomes=fails("seccomp", errno.EINVAL))["seccomp"].level == "missing"
    assert told(pressure=False)["pressure"].level == "missing"
    hole = told(facts=facts(punch_hole_failure="/mnt: Operation not supported"))["journal.punch_hole"]
    assert (hole.level, hole.detail.startswith("/mnt: Operation not supported; ")) == ("missing", True)


def test_what_was_not_tried_is_missing() -> None:
    """A probing program that broke promises nothing, and says why."""
    found = told(outcomes=Outcomes({}, "the probing program ended with 1"))
    assert {found[f"namespace.{word}"].level for word in NAMESPACES} == {"missing"}
    assert found["seccomp"].detail.startswith("the probing program ended with 1")


def test_the_driver_without_groups_refuses_every_limit_and_makes_nothing() -> None:
    """Chosen without root where nothing is delegated; as root such a host is refused as ever."""
    settings = Settings()
    driver = select_driver(facts(cgroup_version="none", cgroup_tree=None, root=False), settings)
    assert driver.version == "none"
    everything = Limits(cpu_percent=1, memory_bytes=2**20, pids=3, io_weight=1, read_bytes_per_s=1, timeout_ms=1)
    asked = ("cpu_percent", "memory_bytes", "pids", "io_weight", "read_bytes_per_s")
    assert [name for name, _ in driver.unsupported(everything)] == list(asked)
    assert driver.unsupported(Limits(open_files=9, file_bytes=9, timeout_ms=9)) == ()
    job = new_job_id()
    plan = driver.plan(job, Limits())
    assert plan == CgroupPlan((), (), (), "", (), "")
    driver.create(plan)
    driver.kill(job)
    assert driver.sample(job, previous=None, now_ns=1) is None
    assert driver.remove(job)
    assert driver.present() == frozenset()
    with pytest.raises(JobletError, match="no cgroup file system"):
        select_driver(facts(cgroup_version="none", cgroup_tree=None), settings)
