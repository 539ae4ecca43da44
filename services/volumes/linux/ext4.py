"""What only a mounted ext4 can be asked: EXT4_IOC_RESIZE_FS (fs/ext4/ext4.h), and its files below /sys/fs/ext4.

Documentation/admin-guide/ext4.rst. Not here: what a file system on a device looks like (`storage/ext4.py`).
"""

import fcntl
import os
import struct
from pathlib import Path
from typing import Final

from common.linux.files import write_once
from common.linux.libc import failed

_EXT4_IOC_RESIZE_FS: Final = 0x4008_6610  # _IOW('f', 16, __u64)


def grow(mounted: int, blocks: int) -> None:
    """Make the file system of the descriptor `blocks` large, while it is used.

    OSError EPERM: without CAP_SYS_RESOURCE, which a container's root may lack, or after an error of the file system.
    """
    try:
        fcntl.ioctl(mounted, _EXT4_IOC_RESIZE_FS, struct.pack("=Q", blocks))
    except OSError as cause:
        raise failed("ioctl(EXT4_IOC_RESIZE_FS)", cause.errno or 0) from cause


def reserve(mounted: int, blocks: int) -> None:
    """Keep so many blocks for what the file system itself may need; nobody's data get them, root's neither.

    The kernel has a figure of its own (the lesser of 2 % and 4096) from each mount on.
    """
    device = os.fstat(mounted).st_dev
    name = Path(f"/sys/dev/block/{os.major(device)}:{os.minor(device)}").resolve().name
    write_once(f"/sys/fs/ext4/{name}/reserved_clusters", str(blocks))
