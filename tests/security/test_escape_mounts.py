"""The host's mounts stay what they are, links in a root lead nowhere out, and the sandbox holds without its filter.

These run launcher, monitors and jobs without the services (tests/linux/sandboxes.py). A mount target is never in
reach of a job: all of the launcher's own are made before the job runs, on an empty tmpfs of its own (CVE-2021-30465);
where a root has links already (a directory as root, a volume) the kernel resolves every path inside it.
"""

import errno
import json
import os
import struct
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Final

import pytest

from services.executor.launcher.newroot import NewRoot
from services.executor.launching import LauncherProcess
from tests.linux.sandboxes import Sandboxes
from tests.security.attack import PYTHON
from tests.security.probes.host import host_mounts
from tests.security.probes.loading import numbers, program

pytestmark = pytest.mark.skipif(os.geteuid() != 0, reason="needs root")

JOBS: Final = 50
AT_ONCE: Final = 5
SWAPS: Final = 10_000
ALLOW_EVERYTHING: Final = struct.pack("HBBI", 0x06, 0, 0, 0x7FFF_0000)  # BPF_RET, SECCOMP_RET_ALLOW


@pytest.fixture
def sandboxes(tmp_path: Path) -> Iterator[Sandboxes]:
    """A launcher of this test's own."""
    with Sandboxes(tmp_path) as opened:
        yield opened


@pytest.mark.threat("A27")
@pytest.mark.requirement("S1.9")
def test_no_mount_reaches_the_host(sandboxes: Sandboxes) -> None:
    """Before, while and after fifty jobs run the host's mounts are the same; inside nothing propagates."""
    before = host_mounts()
    for _ in range(JOBS // AT_ONCE):
        jobs = [sandboxes.start("sh", "-c", "cat /proc/self/mountinfo; exec sleep 60") for _ in range(AT_ONCE)]
        for job in jobs:
            seen = job.wait_for_output(b" /work ")
            assert not {b"shared:", b"master:", b"propagate_from:"} & {
                word[: word.find(b":") + 1] for word in seen.split()
            }
        assert host_mounts() == before
        while sandboxes.jobs:
            sandboxes.jobs.pop().close()
    assert host_mounts() == before


@pytest.mark.threat("A05")
@pytest.mark.threat("A12")
@pytest.mark.threat("A24")
def test_the_sandbox_holds_without_its_filter(tmp_path: Path) -> None:
    """With every system call allowed, and all capabilities of a user namespace of its own, a job changes nothing.

    Its mounts, interfaces and names belong to the host's user namespace (docs/adr/0013-user-namespaces.md): the filter
    is the second lock, not the only one. The control is that new namespaces can be made here.
    """
    unfiltered = Sandboxes(tmp_path)
    unfiltered.launcher = LauncherProcess(ALLOW_EVERYTHING)
    with unfiltered:
        result = unfiltered.run(PYTHON, "-I", "-c", program("unfiltered"), numbers())
        made = unfiltered.run("unshare", "--user", "--mount", "true").exit
    expected = {
        **dict.fromkeys(("unmask", "unmount proc", "unmount the root"), "EINVAL"),  # locked together
        "own group": "EACCES",
        "root": "EINVAL",  # no id is mapped there, and /proc, where it would be, is read-only
        **dict.fromkeys(("namespace of init", "root of init"), "EACCES"),
        "kernel setting": "EROFS",
    }
    seen = json.loads(result.stdout)
    assert {name: said for name, said in seen.items() if said != expected.get(name, "EPERM")} == {}
    assert made["exit_code"] == 0, "no user namespace can be made: nothing was attacked"


@pytest.mark.threat("A03")
@pytest.mark.requirement("S1.12")
def test_links_in_a_root_lead_nowhere_out(tmp_path: Path) -> None:
    """Absolute links, '..' and magic links in a root are resolved inside it; plain opening follows them out."""
    inside, outside = tmp_path / "root", tmp_path / "outside"
    (inside / "deep").mkdir(parents=True)
    outside.mkdir()
    (outside / "secret").write_text("host")
    links: dict[str, str] = {
        "absolute": str(outside),
        "up": "../outside",
        "far": "../" * 40 + str(outside),
        "deep/up": "../../outside",
    }
    for name, target in links.items():
        (inside / name).symlink_to(target)
    root = NewRoot(str(inside))
    root.open()
    try:
        for name in links:
            with pytest.raises(FileNotFoundError), root.at(f"/{name}/secret"):
                pass
            assert (inside / name / "secret").read_text() == "host", "the control does not lead out"
        for name in ("../outside/secret", "deep/../../outside/secret"):
            with pytest.raises(FileNotFoundError), root.at(f"/{name}"):
                pass
    finally:
        os.close(root.descriptor)


@pytest.mark.threat("A02")
@pytest.mark.threat("A03")
@pytest.mark.parametrize("link", ["/proc/self/root", "/proc/self/cwd", "/proc/self/exe", "/proc/self/fd/0"])
def test_magic_links_are_not_followed(link: str) -> None:
    """What /proc shows as a link leads where no path leads: it is refused also where it would stay inside."""
    root = NewRoot("/")
    root.open()
    try:
        with pytest.raises(OSError, match="symbolic links") as raised, root.at(link):
            pass
        assert raised.value.errno == errno.ELOOP
        os.close(os.open(link, os.O_PATH))
    finally:
        os.close(root.descriptor)


@pytest.mark.threat("A03")
def test_links_that_are_swapped_in_lead_nowhere_out(tmp_path: Path) -> None:
    """CVE-2021-30465: while somebody swaps a directory for a link out, nothing but the directory is ever opened.

    The control checks first and opens then, as was done before: it is beaten.
    """
    (tmp_path / "root" / "target").mkdir(parents=True)
    (tmp_path / "outside").mkdir()
    wrong = (tmp_path / "outside").stat().st_ino
    root = NewRoot(str(tmp_path / "root"))
    root.open()

    def guarded() -> int:
        with root.at("/target") as descriptor:
            return os.fstat(descriptor).st_ino

    def checked() -> int:
        path = tmp_path / "root" / "target"
        if path.resolve().parent != tmp_path / "root":
            raise FileNotFoundError(2, "a link out")
        return path.stat().st_ino

    try:
        assert beaten(tmp_path, guarded, wrong, tries=SWAPS) == 0
        assert beaten(tmp_path, checked, wrong, tries=SWAPS * 20) > 0, "the race was never lost: nothing was attacked"
    finally:
        os.close(root.descriptor)


def beaten(directory: Path, opened: Callable[[], int], wrong: int, *, tries: int) -> int:
    """How often `opened` led to the inode `wrong` while another thread swapped; it ends at the first time."""
    stop = threading.Event()
    swapper = threading.Thread(target=swap, args=(directory, stop))
    swapper.start()
    found = 0
    try:
        for _ in range(tries):
            try:
                found += opened() == wrong
            except OSError:
                continue
            if found:
                break
    finally:
        stop.set()
        swapper.join()
    return found


def swap(directory: Path, stop: threading.Event) -> None:
    """Directory, link out, directory, and so on."""
    target, kept = directory / "root" / "target", directory / "root" / "kept"
    while not stop.is_set():
        target.rename(kept)
        target.symlink_to(directory / "outside")
        target.unlink()
        kept.rename(target)
