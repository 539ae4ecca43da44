"""Project quotas: quotactl_fd(2) (Linux 5.14), and the project of a directory: FS_IOC_FSSETXATTR.

Headers: linux/quota.h, linux/dqblk_xfs.h, linux/fs.h. The same calls serve ext4 and XFS. Not here: which project is
whose (`storage/project.py`).
"""

import ctypes
import errno
import fcntl
import struct
from typing import Final, NamedTuple

from common.linux.libc import declare_syscall, failed

_PRJQUOTA: Final = 2
_Q_GETQUOTA: Final = 0x80_0007
_Q_SETQUOTA: Final = 0x80_0008
_Q_XGETQSTATV: Final = ord("X") << 8 | 8
_QIF_LIMITS: Final = 1 | 4
_UNIT_BYTES: Final = 1024  # of the limits in struct if_dqblk

_STATV_VERSION: Final = 1
_STATV_BYTES: Final = 256  # more than struct fs_quota_statv has
_PROJECT_ENFORCED: Final = 1 << 5

_FS_IOC_FSGETXATTR: Final = 0x801C_581F
_FS_IOC_FSSETXATTR: Final = 0x401C_5820
_FSXATTR: Final = struct.Struct("=IIIII8x")
_FS_XFLAG_PROJINHERIT: Final = 0x200

_NO_QUOTA: Final = frozenset({errno.ENOSYS, errno.ESRCH, errno.EINVAL, errno.EOPNOTSUPP, errno.ENOTTY, errno.EPERM})

_quotactl_fd = declare_syscall("quotactl_fd", ctypes.c_uint, ctypes.c_uint, ctypes.c_uint, ctypes.c_void_p)


class _Dqblk(ctypes.Structure):
    """struct if_dqblk (72 bytes)."""

    _fields_ = (
        *(
            (name, ctypes.c_uint64)
            for name in (
                "bhardlimit",
                "bsoftlimit",
                "curspace",
                "ihardlimit",
                "isoftlimit",
                "curinodes",
                "btime",
                "itime",
            )
        ),
        ("valid", ctypes.c_uint32),
    )


class Usage(NamedTuple):
    """Of a project. A limit of 0 is none."""

    used_bytes: int
    used_inodes: int
    bytes_max: int
    inodes_max: int


def enforced(directory: int) -> bool:
    """Whether the file system of the descriptor holds projects to their limits; counting alone is not enough."""
    answer = ctypes.create_string_buffer(struct.pack("=b", _STATV_VERSION), _STATV_BYTES)
    try:
        _call(directory, _Q_XGETQSTATV, 0, ctypes.addressof(answer))
    except OSError as cause:
        if cause.errno not in _NO_QUOTA:
            raise
        return False
    flags: int = struct.unpack_from("=H", answer.raw, 2)[0]
    return bool(flags & _PROJECT_ENFORCED)


def usage(directory: int, project: int) -> Usage:
    """What a project has on the file system of the descriptor."""
    block = _Dqblk()
    try:
        _call(directory, _Q_GETQUOTA, project, ctypes.addressof(block))
    except OSError as cause:
        if cause.errno != errno.ENOENT:  # XFS: it has nothing
            raise
    return Usage(block.curspace, block.curinodes, block.bhardlimit * _UNIT_BYTES, block.ihardlimit)


def limit(directory: int, project: int, *, bytes_max: int, inodes_max: int) -> None:
    """Hold a project to these, in whole KiB; 0 for none."""
    block = _Dqblk(bhardlimit=bytes_max // _UNIT_BYTES, ihardlimit=inodes_max, valid=_QIF_LIMITS)
    _call(directory, _Q_SETQUOTA, project, ctypes.addressof(block))


def project_of(directory: int) -> int:
    """The project of a directory; 0: none."""
    return int(_attributes(directory)[3])


def set_project(directory: int, project: int) -> None:
    """The directory, and all that will be made in it, belongs to the project."""
    flags, extent, _, _, cow = _attributes(directory)
    changed = _FSXATTR.pack(flags | _FS_XFLAG_PROJINHERIT, extent, 0, project, cow)
    try:
        fcntl.ioctl(directory, _FS_IOC_FSSETXATTR, changed)
    except OSError as cause:
        raise failed("ioctl(FS_IOC_FSSETXATTR)", cause.errno or 0) from cause


def _attributes(directory: int) -> tuple[int, int, int, int, int]:
    answer = bytearray(_FSXATTR.size)
    try:
        fcntl.ioctl(directory, _FS_IOC_FSGETXATTR, answer)
    except OSError as cause:
        raise failed("ioctl(FS_IOC_FSGETXATTR)", cause.errno or 0) from cause
    flags, extent, extents, project, cow = _FSXATTR.unpack(answer)
    return flags, extent, extents, project, cow


def _call(directory: int, command: int, project: int, address: int) -> None:
    try:
        _quotactl_fd(directory, command << 8 | _PRJQUOTA, project, address)
    except OSError as cause:
        raise failed("quotactl_fd", cause.errno or 0) from cause
