"""Where in its root a job can have a volume. Pure: the words are looked at, and no directory.

What the words cannot tell (a mount point that is a link, a file, or missing inside another volume) the launch finds,
where nothing can change it any more: launcher/volumes.py. Paths are the bytes that they are for the kernel: letters
that look like others are others. Used for what a job asks for at its start, and what is attached to it later.
"""

import posixpath
from collections.abc import Iterable, Sequence
from typing import Final

from common.errors import invalid
from common.identifiers import parse_name
from common.messages.jobs import VolumeMount

VOLUMES_MAX: Final = 32
PATH_BYTES_MAX: Final = 4095
"""PATH_MAX of include/uapi/linux/limits.h, without the NUL: a longer one no program could name."""
COMPONENT_BYTES_MAX: Final = 255
DIRECTORIES_MAX: Final = 256
"""Of all mount points of a job and what is above them: they are made in its root, which has 1,024 inodes."""

CLOSED: Final = (
    *("/proc", "/dev", "/sys", "/etc"),  # the kernel's, and what joblet makes
    *("/usr", "/bin", "/sbin", "/lib", "/lib32", "/lib64", "/libx32"),  # programs and their libraries
)
"""At and below these a job has no volume, and below what the node binds read-only (joblet.jobs.read_only_paths)."""
_DEL: Final = 127
_REPAIR: Final = "use an absolute path such as /volumes/NAME or /data, without '.', '..', '//' or a '/' at its end"


def check_mounts(mounts: Sequence[VolumeMount], read_only_paths: Iterable[str]) -> None:
    """Raise INVALID, naming what cannot be and what to use, when a job cannot have all of these."""
    if len(mounts) > VOLUMES_MAX:
        raise invalid(f"{len(mounts)} volumes, at most {VOLUMES_MAX} are taken", "use fewer")
    closed = (*CLOSED, *read_only_paths)
    names: set[str] = set()
    points: dict[str, str] = {}
    for mount in mounts:
        check_mount(mount, closed)
        if mount.name in names:
            raise invalid(f"volume {mount.name} is asked for twice", "a job has a volume at one path: name it once")
        if mount.path in points:
            raise invalid(
                f"volumes {points[mount.path]} and {mount.name} are both to be at {_shown(mount.path)}",
                "give each its own path",
            )
        names.add(mount.name)
        points[mount.path] = mount.name
    if len({above for path in points for above in _with_parents(path)}) > DIRECTORIES_MAX:
        raise invalid(f"the mount points have more than {DIRECTORIES_MAX} directories in all", "use shorter paths")


def check_mount(mount: VolumeMount, closed: Iterable[str]) -> None:
    """Raise INVALID when a volume of this name cannot be at this path. `closed`: paths that are, with all below."""
    parse_name(mount.name, "volume")
    path = mount.path
    problem = _problem(path)
    if problem:
        raise invalid(f"path {_shown(path)} of volume {mount.name} {problem}", _REPAIR)
    above = next((top for top in closed if is_at_or_below(path, top)), None)
    if above is not None:
        raise invalid(
            f"volume {mount.name} cannot be at {_shown(path)}: {above} is not the job's to change",
            f"use a path such as /volumes/{mount.name}",
        )


def in_order(mounts: Iterable[VolumeMount]) -> tuple[VolumeMount, ...]:
    """As they can be mounted: who holds another's mount point comes before it."""
    return tuple(sorted(mounts, key=lambda mount: mount.path.split("/")))


def is_at_or_below(path: str, top: str) -> bool:
    """Whole names count: /ab is not below /a."""
    return path == top or path.startswith(top.rstrip("/") + "/")


def _problem(path: str) -> str:
    """What is wrong with the words; empty: nothing."""
    try:
        encoded = path.encode()
    except UnicodeEncodeError:
        return "is not valid Unicode"
    parts = encoded.split(b"/")[1:]
    longest = max(map(len, parts), default=0)
    meant = posixpath.normpath("/" + path.lstrip("/"))
    problems = (
        (not path.startswith("/"), "is not absolute"),
        (path == "/", "is the root itself"),
        (path == "/volumes", "is where each volume has its own directory"),
        (any(ord(each) < ord(" ") or ord(each) == _DEL for each in path), "contains a control character"),
        (
            any(part in (b"", b".", b"..") for part in parts),
            f"is not normalized ({_shown(meant)} is what it would mean)",
        ),
        (len(encoded) > PATH_BYTES_MAX, f"has {len(encoded)} bytes, at most {PATH_BYTES_MAX} are possible"),
        (longest > COMPONENT_BYTES_MAX, f"has a name of {longest} bytes, at most {COMPONENT_BYTES_MAX} are possible"),
    )
    return next((text for wrong, text in problems if wrong), "")


def _with_parents(path: str) -> list[str]:
    parts = path.split("/")[1:]
    return ["/".join(parts[:end]) for end in range(1, len(parts) + 1)]


def _shown(path: str) -> str:
    return f"{path[:80]!r}"
