"""The mounts of this mount namespace, parsed: proc_pid_mountinfo(5). Not here: what anybody makes of them."""

import os
import re
from collections.abc import Iterable
from pathlib import Path
from typing import Final, NamedTuple

_OCTAL: Final = re.compile(r"\\([0-7]{3})")


class Mount(NamedTuple):
    """One line of mountinfo."""

    id: int
    device: str  # MAJ:MIN as stat(2) tells it of files there; major 0: no block device of its own
    point: str
    kind: str  # of file system
    source: str


def parse(text: str) -> tuple[Mount, ...]:
    """All mounts, in the order of mounting. A line of another shape is left out."""
    found = []
    for line in text.split("\n"):  # other ends of lines are part of a name: the kernel does not escape them
        head, _, tail = line.partition(" - ")
        fields, end = head.split(" "), tail.split(" ")
        if len(fields) >= 6 and len(end) >= 2 and fields[0].isdigit():
            found.append(Mount(int(fields[0]), fields[2], _unescape(fields[4]), end[0], _unescape(end[1])))
    return tuple(found)


def present() -> tuple[Mount, ...]:
    """Those of this process."""
    return parse(Path("/proc/self/mountinfo").read_bytes().decode("utf-8", "surrogateescape"))


def below(mounts: Iterable[Mount], directory: str) -> tuple[Mount, ...]:
    """The mounts whose point lies below `directory`, itself not: whole names count, /a is not above /ab."""
    prefix = directory.rstrip("/") + "/"
    return tuple(mount for mount in mounts if mount.point.startswith(prefix) and mount.point != prefix)


def mount_id(descriptor: int) -> int:
    """The id of the mount that a descriptor is on (proc_pid_fdinfo(5)); st_dev is the same on both sides of a bind."""
    with open(f"/proc/self/fdinfo/{descriptor}", encoding="ascii") as info:  # noqa: PTH123
        return next(int(line.split()[1]) for line in info if line.startswith("mnt_id:"))


def mount_id_of(path: str) -> int:
    """The id of the mount that `path` is on. Raises OSError."""
    descriptor = os.open(path, os.O_PATH | os.O_CLOEXEC)
    try:
        return mount_id(descriptor)
    finally:
        os.close(descriptor)


def _unescape(word: str) -> str:
    """Space, tab, newline and backslash are octal in mountinfo."""
    return _OCTAL.sub(lambda match: chr(int(match[1], 8)), word)
