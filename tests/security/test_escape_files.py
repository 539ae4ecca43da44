"""Escape by files: /proc, masks, devices, the read-only root, what lies above it, set-uid programs.

One probe (probes/files.py) tries everything in a job, and as root without protection. Where the control finds nothing
to attack, because this kernel lacks it, the mechanism is judged: /proc is one read-only mount, /dev holds six devices.
"""

import json
from pathlib import Path
from typing import Any

import pytest

from services.executor.sandbox import DEVICES, MASKED
from tests.e2e.node import Node
from tests.security.attack import in_job
from tests.security.probes.loading import probe_in_job, probe_unprotected

REFUSED = {
    "open a program": "EROFS",
    "own interpreter": "EROFS",
    "link to a program": "EXDEV",
    "set-uid": "EPERM",  # it ran, and was nobody special
    "entropy": "EPERM",
    "controlling terminal": "ENXIO",  # there is none
    "the first process's root": "EACCES",
}
NOT_THERE = frozenset({"above the root", "above by cwd", "above by root", "joblet", "groups", "firmware"})
NO_CONTROL = frozenset({"controlling terminal", "make in /proc", "make in /volumes"})
"""Outside, too, nothing is won by these."""


@pytest.fixture(scope="module")
def probes(node: Node) -> tuple[dict[str, Any], dict[str, Any]]:
    """What the probe saw in a job and without protection."""
    arguments = (str(node.base), json.dumps(MASKED))
    return probe_in_job(node, "files", *arguments), probe_unprotected("files", *arguments)


@pytest.fixture(scope="module")
def inside(probes: tuple[dict[str, Any], dict[str, Any]]) -> dict[str, Any]:
    """In the job."""
    return probes[0]


def reason(name: str) -> set[str]:
    """How the attack must fail."""
    if name in REFUSED:
        return {REFUSED[name]}
    if name == "make in /volumes":
        return {"EACCES"}  # a tmpfs that takes mount points, but only from the host's root
    if name in NOT_THERE or name.startswith("/dev/"):
        return {"ENOENT"}
    if name.startswith("/proc/") or name == "make in /proc":
        return {"EROFS", "ENOENT"}  # what this kernel has is read-only; it is one mount
    return {"EROFS"}


@pytest.mark.threat("A06")
@pytest.mark.threat("A08")
@pytest.mark.threat("A09")
@pytest.mark.threat("A11")
@pytest.mark.threat("A24")
@pytest.mark.threat("A26")
@pytest.mark.requirement("S1.38")
def test_files(inside: dict[str, Any]) -> None:
    """No setting of the kernel can be opened for writing, no file of the host be changed, made or found."""
    wrong = {name: said for name, said in inside["tried"].items() if said not in reason(name)}
    assert wrong == {}


def test_the_same_succeeds_without_protection(probes: tuple[dict[str, Any], dict[str, Any]]) -> None:
    """The control: what there is on this host root could open, make and find."""
    inside, outside = probes
    missed = {
        name: said
        for name, said in outside["tried"].items()
        if said not in {"ok", "ENOENT"} and name not in NO_CONTROL and Path(name).name not in ("vda", "sda")
    }
    # A running program cannot be written to, and what belongs to another namespace not from here: no matter of rights.
    assert missed.keys() <= {"own interpreter", "/proc/sys/user/max_user_namespaces"}
    assert outside["tried"]["/proc/sys/kernel/core_pattern"] == "ok"
    assert outside["tried"]["set-uid"] == "ok"
    assert not any(said == "ok" for said in inside["tried"].values())


@pytest.mark.threat("A04")
@pytest.mark.threat("A08")
def test_masks(probes: tuple[dict[str, Any], dict[str, Any]]) -> None:
    """What is masked, and exists here, is an empty mount of its own: not /dev/null, and read-only.

    Its cover comes from a tmpfs that no path leads to any more, so nothing can be put in its place (CVE-2025-31133).
    """
    inside, outside = probes
    existing = [path for path in MASKED if Path(path).exists()]
    assert existing, "this kernel has none of them"
    assert {path: inside["masked"][path] for path in existing} == dict.fromkeys(existing, 0)
    assert any(isinstance(outside["masked"][path], int) and outside["masked"][path] > 0 for path in existing)
    mounts = {fields[4]: fields for fields in map(str.split, inside["mounts"].splitlines())}
    for path in existing:
        found = mounts[path]
        assert found[3] in ("/file", "/directory"), found
        assert {"ro", "nosuid", "nodev", "noexec"} <= set(found[5].split(",")), found
    assert {"ro", "nosuid", "nodev", "noexec"} <= set(mounts["/proc"][5].split(","))


@pytest.mark.threat("A04")
@pytest.mark.threat("A09")
def test_devices(inside: dict[str, Any]) -> None:
    """Exactly the six harmless ones by their numbers, and links to one's own descriptors."""
    expected = {Path(path).name: f"{major}:{minor}" for path, major, minor in DEVICES}
    links = {"fd": "/proc/self/fd", "ptmx": "pts/ptmx"}
    links |= {name: f"/proc/self/fd/{number}" for number, name in enumerate(("stdin", "stdout", "stderr"))}
    assert inside["devices"] == expected | links | {"pts": "directory", "shm": "directory"}


@pytest.mark.threat("A26")
@pytest.mark.threat("A27")
def test_mounts_lead_nowhere(node: Node, inside: dict[str, Any]) -> None:
    """Of the host there are the programs and their configuration, read-only; nothing propagates."""
    for line in inside["mounts"].splitlines():
        fields = line.split()
        root, point, options, tag, kind = fields[3], fields[4], fields[5].split(","), fields[6], fields[8]
        assert tag == "-", f"propagates: {line}"
        assert "nosuid" in options, line
        assert "nodev" in options or point.startswith("/dev/"), line
        assert ("rw" in options) == (point in ("/tmp", "/work", "/volumes", "/dev/shm", "/dev/pts")), line
        assert str(node.base) not in line
        if kind not in ("tmpfs", "proc", "devpts", "devtmpfs"):
            assert root == ("/" if kind == "overlay" else point), f"a path of the host: {line}"
            assert point.startswith(("/usr", "/etc/", "/bin", "/lib", "/sbin")), line


@pytest.mark.threat("A02")
def test_a_working_directory_by_descriptor_is_refused(node: Node) -> None:
    """CVE-2024-21626: before anything is started."""
    before = len(node.jobs("--all"))
    for workdir in ("/proc/self/fd/7", "/proc/self/cwd/..", "/proc/1/root", "/dev/fd/3", "/work/../.."):
        done = in_job(node, "pwd", options=("--workdir", workdir))
        assert done.code != 0
        assert b"workdir" in done.stderr
        assert done.stdout == b""
    assert len(node.jobs("--all")) == before
