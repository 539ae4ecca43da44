"""Reading, writing and removing what the kernel shows as files of a control group.

Here: one exact write with read back, numbers, keyed tables, lists of processes, directories. Not here: which file
means what (`v2.py`, `v1.py`). A buffered `open().write()` hides the errno of a refused value until close, or
altogether; so every write is one os.open and one os.write. Kernel source: kernel/cgroup/cgroup.c, fs/kernfs/file.c.
"""

import errno
import os
import re
from collections.abc import Callable
from pathlib import Path
from typing import Final

from common.cpulist import parse_cpu_list
from common.errors import JobletError, Reason, precondition
from services.executor.cgroups.driver import CgroupPlan, Write

FILE_BYTES_MAX: Final = 1 << 20
"""Control files of one job are some hundred bytes; cgroup.procs grows with the number of processes."""

_DEVICE: Final = re.compile(r"\d+:\d+ ")
PAGE_BYTES: Final = os.sysconf("SC_PAGESIZE")
GONE: Final = frozenset({errno.ENOENT, errno.ENODEV})
"""What a read of a removed group says: ENODEV when it went between open and read."""


def read(path: str) -> str:
    """The content of a control file. Raises OSError."""
    descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    try:
        parts = []
        while part := os.read(descriptor, FILE_BYTES_MAX):
            parts.append(part)
        return b"".join(parts).decode("ascii", "replace")
    finally:
        os.close(descriptor)


def read_number(path: str) -> int:
    """The number that is all of a control file. Raises OSError, and ValueError where it holds a word."""
    return int(read(path))


def read_table(path: str) -> dict[str, int]:
    """The "key number" lines of a control file. Raises OSError."""
    pairs = (line.split() for line in read(path).splitlines())
    return {pair[0]: int(pair[1]) for pair in pairs if len(pair) == 2 and pair[1].isdigit()}


def read_processes(path: str) -> frozenset[int]:
    """Process ids in a cgroup.procs file. Raises OSError."""
    return frozenset(int(word) for word in read(path).split())


def put(path: str, value: str) -> None:
    """One write of `value`, without reading back: for commands such as cgroup.kill. Raises OSError."""
    data = value.encode("ascii")
    descriptor = os.open(path, os.O_WRONLY | os.O_CLOEXEC)
    try:
        written = os.write(descriptor, data)
    finally:
        os.close(descriptor)
    if written != len(data):
        raise OSError(errno.EIO, f"{written} of {len(data)} bytes were written", path)


def lift(path: str, no_limit: Callable[[str], str]) -> None:
    """Take the limits of all devices out of a file with a line for each. Nothing when the group is gone."""
    try:
        for line in read(path).splitlines():
            put(path, no_limit(line.split()[0]))
    except OSError as cause:
        if cause.errno not in GONE:
            raise


def set_value(write: Write) -> None:
    """Write a limit and read it back. Raises JobletError that names file and value, not the path: clients read it."""
    file = write.path.rpartition("/")[2]
    try:
        put(write.path, write.value)
        present = read(write.path).strip()
    except OSError as cause:
        raise precondition(
            f"cannot set {file} to {write.value!r}: {os.strerror(cause.errno or 0)}",
            "see `joblet doctor` for what this host can enforce",
        ) from cause
    if not means_the_same(write.value, present):
        raise JobletError(
            Reason.INTERNAL,
            f"{file} was set to {write.value!r}, but the kernel holds {present!r}",
            detail="the limit would not be enforced; see `joblet doctor`",
        )


def means_the_same(asked: str, present: str) -> bool:
    """Whether the kernel's `present` is `asked`, allowing the roundings that the kernel documents.

    Byte counts are rounded down to whole pages (cgroup-v2.rst, memory), and CPU lists are joined into ranges. A value
    for one device is a line among those of others.
    """
    if asked == present:
        return True
    if _DEVICE.match(asked):
        return asked in present.splitlines()
    if asked.isdigit() and present.isdigit():
        return int(present) == int(asked) // PAGE_BYTES * PAGE_BYTES
    try:
        return bool(asked) and parse_cpu_list(asked) == parse_cpu_list(present)
    except ValueError:
        return False


def make_groups(plan: CgroupPlan) -> None:
    """Make the directories of `plan` and write its limits; all or nothing. Raises JobletError, FileNotFoundError.

    FileNotFoundError means that a parent of a group is gone; nothing else raises it.
    """
    made: list[str] = []
    try:
        for directory in plan.directories:
            _make_group(directory)
            made.append(directory)
        for write in plan.writes:
            set_value(write)
    except BaseException:
        for directory in reversed(made):
            os.rmdir(directory)  # noqa: PTH106  # as every path of a plan, a plain string
        raise


def _make_group(directory: str) -> None:
    try:
        os.mkdir(directory, 0o755)  # noqa: PTH102
    except FileNotFoundError:
        raise
    except OSError as cause:
        raise precondition(
            f"cannot make a control group for the job: {os.strerror(cause.errno or 0)}",
            "the cgroup file system must be writable for the executor; see `joblet doctor`",
        ) from cause


def remove_group(directory: str) -> bool:
    """Remove a group and the groups below it. True when it is gone, False while something lives in it (EBUSY)."""
    try:
        os.rmdir(directory)  # noqa: PTH106
    except FileNotFoundError:
        return True
    except OSError as cause:
        if cause.errno not in {errno.EBUSY, errno.ENOTEMPTY}:
            raise
        below = [remove_group(f"{directory}/{name}") for name in subgroups(directory)]
        return bool(below) and all(below) and remove_group(directory)
    return True


def subgroups(directory: str) -> tuple[str, ...]:
    """Names of the groups right below `directory`; none when it is not there."""
    try:
        with os.scandir(directory) as entries:
            return tuple(entry.name for entry in entries if entry.is_dir(follow_symlinks=False))
    except FileNotFoundError:
        return ()


def files_of(directory: Path) -> frozenset[str]:
    """Names of the control files of a group: what the kernel offers there. Raises OSError."""
    return frozenset(entry.name for entry in directory.iterdir() if entry.is_file())
