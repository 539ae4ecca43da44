"""Mounts: unshare(2), mount(2), umount2(2), pivot_root(2), open_tree(2), move_mount(2), mount_setattr(2) (Linux 5.12).

And statx(2). Headers: sys/mount.h, linux/mount.h, linux/fcntl.h, linux/stat.h. Trees are taken and placed by
descriptor, so that no path is walked twice. MS_BIND|MS_RDONLY in one mount(2) is silently writable: read-only comes
from mount_setattr only.
"""

import ctypes
import os
import sys
from typing import Final

from common.linux.libc import declare, declare_syscall, failed

MS_RDONLY: Final = 0x1
MS_NOSUID: Final = 0x2
MS_NODEV: Final = 0x4
MS_NOEXEC: Final = 0x8
MS_REMOUNT: Final = 0x20
MS_NOATIME: Final = 0x400
MS_REC: Final = 0x4000
MS_PRIVATE: Final = 0x4_0000
MNT_DETACH: Final = 0x2
UMOUNT_NOFOLLOW: Final = 0x8

MOUNT_ATTR_RDONLY: Final = 0x1
MOUNT_ATTR_NOSUID: Final = 0x2
MOUNT_ATTR_NODEV: Final = 0x4
MOUNT_ATTR_NOEXEC: Final = 0x8
_MOUNT_ATTR_IDMAP: Final = 0x10_0000

_CLONE_NEWNS: Final = 0x2_0000

_AT_FDCWD: Final = -100
_AT_SYMLINK_NOFOLLOW: Final = 0x100
_AT_EMPTY_PATH: Final = 0x1000
_AT_RECURSIVE: Final = 0x8000
_OPEN_TREE_CLONE: Final = 0x1
_OPEN_TREE_CLOEXEC: Final = os.O_CLOEXEC
_MOVE_MOUNT_F_EMPTY_PATH: Final = 0x4
_MOVE_MOUNT_T_EMPTY_PATH: Final = 0x40
_STATX_BYTES: Final = 256
_STATX_ATTRIBUTES: Final = slice(8, 16)  # stx_attributes of struct statx
_STATX_ATTR_MOUNT_ROOT: Final = 0x2000


class _MountAttr(ctypes.Structure):
    """struct mount_attr of linux/mount.h (32 bytes)."""

    _fields_ = tuple((name, ctypes.c_uint64) for name in ("attr_set", "attr_clr", "propagation", "userns_fd"))


_char_p = ctypes.c_char_p
_mount = declare("mount", _char_p, _char_p, _char_p, ctypes.c_ulong, _char_p)
_umount2 = declare("umount2", _char_p, ctypes.c_int)
_unshare = declare("unshare", ctypes.c_int)
_pivot_root = declare_syscall("pivot_root", _char_p, _char_p)
_open_tree = declare_syscall("open_tree", ctypes.c_int, _char_p, ctypes.c_uint)
_move_mount = declare_syscall("move_mount", ctypes.c_int, _char_p, ctypes.c_int, _char_p, ctypes.c_uint)
_mount_setattr = declare_syscall(
    "mount_setattr", ctypes.c_int, _char_p, ctypes.c_uint, ctypes.POINTER(_MountAttr), ctypes.c_size_t
)
_statx = declare_syscall("statx", ctypes.c_int, _char_p, ctypes.c_int, ctypes.c_uint, _char_p)


def unshare_mounts() -> None:
    """Give this process mounts of its own, as they are now. Propagation stays: see MS_PRIVATE. linux/sched.h."""
    _unshare(_CLONE_NEWNS)


def mount(source: str, target: str, kind: str | None, flags: int, data: str = "") -> None:
    """Mount a new file system, or with `kind` None change only flags, such as the propagation."""
    try:
        _mount(source.encode(), os.fsencode(target), kind.encode() if kind else None, flags, data.encode() or None)
    except OSError as cause:
        raise failed("mount", cause.errno or 0, target) from cause


def umount2(target: str, flags: int) -> None:
    """Take a mount away; with MNT_DETACH at once for new look-ups, and for good when nobody uses it any more."""
    try:
        _umount2(os.fsencode(target), flags)
    except OSError as cause:
        raise failed("umount2", cause.errno or 0, target) from cause


def pivot_root(new_root: str, put_old: str) -> None:
    """Change the root; with "." twice the old root lies above the new one and is detached with umount2(".")."""
    try:
        _pivot_root(os.fsencode(new_root), os.fsencode(put_old))
    except OSError as cause:
        raise failed("pivot_root", cause.errno or 0, new_root) from cause


def open_tree(path: str, *, recursive: bool, directory: int = _AT_FDCWD) -> int:
    """A descriptor of a detached copy of the mount at `path`, with those below it when `recursive`.

    A symbolic link at the end of `path` is not followed; an empty `path` means `directory` itself. The caller closes
    the descriptor.
    """
    flags = _OPEN_TREE_CLONE | _OPEN_TREE_CLOEXEC | _AT_SYMLINK_NOFOLLOW | (_AT_RECURSIVE if recursive else 0)
    try:
        return _open_tree(directory, os.fsencode(path), flags | (0 if path else _AT_EMPTY_PATH))
    except OSError as cause:
        raise failed("open_tree", cause.errno or 0, path) from cause


def move_mount(tree: int, target: int) -> None:
    """Attach the detached `tree` on the file or directory that the descriptor `target` names."""
    _move_mount(tree, b"", target, b"", _MOVE_MOUNT_F_EMPTY_PATH | _MOVE_MOUNT_T_EMPTY_PATH)


def map_owners(mounted: int, user_namespace: int) -> None:
    """Show the files of the detached tree `mounted` with the owners that `user_namespace` maps them to.

    The owners on the disk are the namespace's ids, and become the ids that it maps them to. OSError EINVAL: not every
    file system can (Linux 5.12 and later, one by one). mount_setattr(2), "ID-mapped mounts".
    """
    change = _MountAttr(attr_set=_MOUNT_ATTR_IDMAP, userns_fd=user_namespace)
    _mount_setattr(mounted, b"", _AT_EMPTY_PATH | _AT_RECURSIVE, ctypes.byref(change), ctypes.sizeof(change))


def mount_setattr(mounted: int, attributes: int, *, recursive: bool) -> None:
    """Switch `attributes` (MOUNT_ATTR_…) on for the mount of the descriptor, and for those below when `recursive`."""
    change = _MountAttr(attr_set=attributes)
    flags = _AT_EMPTY_PATH | (_AT_RECURSIVE if recursive else 0)
    _mount_setattr(mounted, b"", flags, ctypes.byref(change), ctypes.sizeof(change))


def make_private(mounted: int) -> None:
    """Nothing that is mounted below the mount of the descriptor comes from elsewhere or goes there from now on."""
    change = _MountAttr(propagation=MS_PRIVATE)
    _mount_setattr(mounted, b"", _AT_EMPTY_PATH, ctypes.byref(change), ctypes.sizeof(change))


def is_mount_root(descriptor: int) -> bool:
    """Whether the file or directory of the descriptor is what a mount begins with (Linux 5.8)."""
    found = ctypes.create_string_buffer(_STATX_BYTES)
    _statx(descriptor, b"", _AT_EMPTY_PATH, 0, found)
    return bool(int.from_bytes(found.raw[_STATX_ATTRIBUTES], sys.byteorder) & _STATX_ATTR_MOUNT_ROOT)
