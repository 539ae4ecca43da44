"""Loop devices: block devices whose content is a file. Header: linux/loop.h. LOOP_CONFIGURE is of Linux 5.8.

Not here: which device is taken for which image, and for how long (`storage/loops.py`).
"""

import ctypes
import errno
import fcntl
import os
from typing import Final, NamedTuple

from common.linux.libc import failed

LO_FLAGS_READ_ONLY: Final = 1
LO_FLAGS_AUTOCLEAR: Final = 4
LO_FLAGS_DIRECT_IO: Final = 16

CONTROL: Final = "/dev/loop-control"

_LOOP_CLR_FD: Final = 0x4C01
_LOOP_GET_STATUS64: Final = 0x4C05
_LOOP_SET_CAPACITY: Final = 0x4C07
_LOOP_CONFIGURE: Final = 0x4C0A
_LOOP_CTL_GET_FREE: Final = 0x4C82


class _LoopInfo64(ctypes.Structure):
    """struct loop_info64 (232 bytes)."""

    _fields_ = (
        ("lo_device", ctypes.c_uint64),
        ("lo_inode", ctypes.c_uint64),
        ("lo_rdevice", ctypes.c_uint64),
        ("lo_offset", ctypes.c_uint64),
        ("lo_sizelimit", ctypes.c_uint64),
        ("lo_number", ctypes.c_uint32),
        ("lo_encrypt_type", ctypes.c_uint32),
        ("lo_encrypt_key_size", ctypes.c_uint32),
        ("lo_flags", ctypes.c_uint32),
        ("lo_file_name", ctypes.c_uint8 * 64),
        ("lo_crypt_name", ctypes.c_uint8 * 64),
        ("lo_encrypt_key", ctypes.c_uint8 * 32),
        ("lo_init", ctypes.c_uint64 * 2),
    )


class _LoopConfig(ctypes.Structure):
    """struct loop_config (304 bytes)."""

    _fields_ = (
        ("fd", ctypes.c_uint32),
        ("block_size", ctypes.c_uint32),
        ("info", _LoopInfo64),
        ("reserved", ctypes.c_uint64 * 8),
    )


class Backing(NamedTuple):
    """What is behind a loop device."""

    device: int  # st_dev of the file
    inode: int
    flags: int  # LO_FLAGS_…


def free_number() -> int:
    """Of a loop device that nobody uses; a new one if there is none. Somebody else may take it before the caller."""
    control = os.open(CONTROL, os.O_RDWR | os.O_CLOEXEC)
    try:
        return _ioctl("ioctl(LOOP_CTL_GET_FREE)", control, _LOOP_CTL_GET_FREE)
    finally:
        os.close(control)


def configure(loop: int, file: int, *, block_bytes: int, flags: int) -> None:
    """Put `file` behind the device of the descriptor `loop`. OSError EBUSY: another file is behind it."""
    info = _LoopInfo64(lo_flags=flags)
    config = _LoopConfig(fd=file, block_size=block_bytes, info=info)
    _ioctl("ioctl(LOOP_CONFIGURE)", loop, _LOOP_CONFIGURE, bytearray(config))


def backing(loop: int) -> Backing | None:
    """What is behind it now, and stays there while the descriptor is open; None: nothing."""
    answer = bytearray(ctypes.sizeof(_LoopInfo64))
    try:
        _ioctl("ioctl(LOOP_GET_STATUS64)", loop, _LOOP_GET_STATUS64, answer)
    except OSError:  # ENXIO: nothing, or not any more
        return None
    info = _LoopInfo64.from_buffer_copy(answer)
    return Backing(info.lo_device, info.lo_inode, info.lo_flags)


def take_size(loop: int) -> None:
    """The file has become larger: so does the device."""
    _ioctl("ioctl(LOOP_SET_CAPACITY)", loop, _LOOP_SET_CAPACITY)


def clear(loop: int) -> None:
    """Let the file go; while anything else uses the device, at its last close. Nothing when there is no file."""
    try:
        _ioctl("ioctl(LOOP_CLR_FD)", loop, _LOOP_CLR_FD)
    except OSError as cause:
        if cause.errno != errno.ENXIO:
            raise


def _ioctl(call: str, descriptor: int, request: int, argument: bytearray | int = 0) -> int:
    try:
        if isinstance(argument, bytearray):
            fcntl.ioctl(descriptor, request, argument, True)  # noqa: FBT003  # its only signature
            return 0
        return fcntl.ioctl(descriptor, request, argument)
    except OSError as cause:
        raise failed(call, cause.errno or 0) from cause
