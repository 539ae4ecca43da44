"""Volumes for tests of their storage: records, a job's user, a kill at a named place, a small disk, loop devices."""

import errno
import fcntl
import os
import signal
import subprocess
import traceback
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Final

import msgspec
import pytest

from common import failpoints
from common.config.layout import Layout, layout_of
from common.config.settings import Settings
from common.errors import JobletError, Reason
from common.identifiers import new_volume_id
from common.messages.volumes import Enforcement, VolumeKind, VolumeRecord, VolumeStatus
from services.volumes.linux import loop
from services.volumes.ports import Ids
from services.volumes.storage import loops, mounting
from tests.waiting import wait_for

JOB: Final = Ids(54321, 54321)
BLOCK: Final = 4096
MIB: Final = 2**20
_LOOP_CTL_ADD: Final = 0x4C80
_LOOP_CTL_REMOVE: Final = 0x4C81


def can_attach() -> bool:
    """By trying."""
    try:
        loop.free_number()
    except OSError:
        return False
    return os.geteuid() == 0


needs_loops = pytest.mark.skipif(not can_attach(), reason="needs a loop device")


def record(size_bytes: int, enforcement: Enforcement = Enforcement.IMAGE, **changes: Any) -> VolumeRecord:
    """A new volume."""
    kind = VolumeKind.MEMORY if enforcement is Enforcement.TMPFS else VolumeKind.FILESYSTEM
    volume = VolumeRecord(
        id=new_volume_id(),
        name="data",
        owner="alice",
        kind=kind,
        size_bytes=size_bytes,
        enforcement=enforcement,
        status=VolumeStatus.CREATING,
        created_at_ns=0,
    )
    return msgspec.structs.replace(volume, **changes)


def layout_at(volumes: Path) -> Layout:
    """A node's paths with the volumes there."""
    return layout_of(Settings())._replace(volumes=volumes)


def as_job(action: Callable[[], object], *, at: str | Path = "/") -> str:
    """What `action` answers in a process of the job's user, whose working directory is `at`."""

    def dropped() -> object:
        os.chdir(at)  # before the drop: a job has no way through the host's directories either
        os.setgroups([])
        os.setresgid(JOB.gid, JOB.gid, JOB.gid)
        os.setresuid(JOB.uid, JOB.uid, JOB.uid)
        return action()

    return in_child(dropped)


def in_child(action: Callable[[], object]) -> str:
    """What `action` answers in a forked process; a failure is told by its traceback."""
    reader, writer = os.pipe()
    pid = os.fork()
    if pid == 0:
        try:
            answer = str(action())
        except BaseException:  # noqa: BLE001  # the child's entry: the parent tells
            answer = f"failed: {traceback.format_exc()}"
        os.write(writer, answer.encode()[:60000])
        os._exit(0)
    os.close(writer)
    told = b""
    while piece := os.read(reader, 65536):
        told += piece
    os.close(reader)
    os.waitpid(pid, 0)
    return told.decode()


def killed_at(place: str, directory: Path, action: Callable[[], object]) -> bool:
    """Whether a process that does `action` came to the place, and died there."""
    directory.mkdir(exist_ok=True)
    (directory / place).write_text("1")
    pid = os.fork()
    if pid == 0:
        os.environ[failpoints.VARIABLE] = str(directory)
        failpoints._directory.cache_clear()
        try:
            action()
        finally:
            os._exit(0)
    _, status = os.waitpid(pid, 0)
    return os.WIFSIGNALED(status) and os.WTERMSIG(status) == signal.SIGKILL


def fill(path: str, *, synchronize: bool = True) -> str:
    """Write blocks until there is no more room: how many there were, and the word for why it ended."""
    descriptor = os.open(path, os.O_CREAT | os.O_WRONLY | os.O_TRUNC, 0o600)
    blocks = 0
    try:
        while True:
            if os.write(descriptor, bytes([blocks % 251]) * BLOCK) < BLOCK:
                return f"{blocks} partly"
            blocks += 1
    except OSError as cause:
        if synchronize:
            os.fsync(descriptor)
        return f"{blocks} {cause.strerror}"
    finally:
        os.close(descriptor)


def free_bytes(path: str) -> int:
    """What statvfs tells everybody."""
    figures = os.statvfs(path)
    return figures.f_bavail * figures.f_frsize


def names(directory: Path | str) -> list[str]:
    """What is in it."""
    return sorted(each.name for each in Path(directory).iterdir())


def may_grow_mounted() -> bool:
    """A container's root may lack CAP_SYS_RESOURCE, bit 24."""
    status = Path("/proc/self/status").read_text()
    effective = next(line.split()[1] for line in status.splitlines() if line.startswith("CapEff:"))
    return bool(int(effective, 16) >> 24 & 1)


def fresh_loop_device() -> None:
    """The device that is taken next is a new one, which gives blocks away; the kernel keeps the limit of an old one."""

    def removed() -> int | None:
        """Its number plus one. Somebody else may take the free one before it is removed."""
        number = loop.free_number()
        return number + 1 if _control(_LOOP_CTL_REMOVE, number, unless=errno.EBUSY) else None

    number = wait_for(removed, what="a free loop device to be removed") - 1
    _control(_LOOP_CTL_ADD, number, unless=errno.EEXIST)  # whoever made it meanwhile made a new one


@contextmanager
def bare_loop_device() -> Iterator[str]:
    """A loop device without a file, and with a number so high that nobody takes it."""
    number = 10_000 + os.getpid() % 10_000
    assert _control(_LOOP_CTL_ADD, number)
    try:
        yield f"/dev/loop{number}"
    finally:
        wait_for(lambda: _control(_LOOP_CTL_REMOVE, number, unless=errno.EBUSY), what="the loop device to be removed")


def _control(request: int, number: int, *, unless: int = 0) -> bool:
    """Whether the kernel did it; False: it answers with the errno `unless`."""
    with open(loop.CONTROL, "r+b", buffering=0) as control:  # noqa: PTH123
        try:
            fcntl.ioctl(control, request, number)
        except OSError as cause:
            if cause.errno != unless:
                raise
            return False
    return True


def loops_below(directory: Path) -> list[str]:
    """Loop devices whose file lies there, removed files included."""
    return [each.path for each in loops.present() if each.file.startswith(f"{directory}/")]


@contextmanager
def refused(reason: Reason, match: str | None = None) -> Iterator[None]:
    """It ends with a JobletError for this reason."""
    with pytest.raises(JobletError, match=match) as raised:
        yield
    assert raised.value.reason is reason, raised.value
    assert raised.value.detail


@contextmanager
def small_disk(directory: Path, mib: int) -> Iterator[Path]:
    """A file system of its own, on a loop device of its own."""
    image, point = directory / "disk.img", directory / "disk"
    point.mkdir()
    with image.open("wb") as file:
        file.truncate(mib * MIB)
    subprocess.run(["mkfs.ext4", "-q", "-F", "-m", "0", image], check=True, timeout=60)
    subprocess.run(["mount", "-o", "loop", image, point], check=True, timeout=60)
    try:
        yield point
    finally:
        subprocess.run(["umount", point], check=True, timeout=60)


@contextmanager
def lagging_namespace(directory: Path) -> Iterator[Callable[[], None]]:
    """A process in a mount namespace of its own, as a job's that has not ended yet, with what is mounted now.

    Of the volumes, only with those below `directory`: those of other tests are not kept for them.
    """
    ready, tell = os.pipe()
    wait, end = os.pipe()
    pid = os.fork()
    if pid == 0:
        os.close(end)
        os.close(ready)
        _unshare(directory)
        os.write(tell, b"x")
        os.read(wait, 1)
        os._exit(0)
    os.close(wait)
    os.close(tell)
    assert os.read(ready, 1) == b"x"
    os.close(ready)
    ended = False

    def finish() -> None:
        nonlocal ended
        if not ended:
            ended = True
            os.close(end)
            os.waitpid(pid, 0)

    try:
        yield finish
    finally:
        finish()


def _unshare(directory: Path) -> None:
    from common.linux import mountinfo, mounts
    from services.executor.linux import namespaces

    namespaces.unshare(namespaces.CLONE_NEWNS)
    mounts.mount("none", "/", None, mounts.MS_REC | mounts.MS_PRIVATE)
    for mount in mountinfo.present():
        point = Path(mount.point)
        of_a_volume = mount.source.startswith(("/dev/loop", "/dev/dm-", "/dev/mapper/", "/dev/joblet-volumes/"))
        if of_a_volume and point.name == mounting.MOUNT and not point.is_relative_to(directory):
            mounts.umount2(mount.point, mounts.MNT_DETACH)
