"""Mount points of volumes: directories in a volume's own one, on which one file system is mounted or none.

Not here: what is mounted and with which options. mount(2), umount2(2).
"""

import errno
import os
from pathlib import Path
from typing import Final

from common.linux import mountinfo, mounts
from services.volumes.storage import places

MOUNT: Final = "mount"
FLAGS: Final = mounts.MS_NOSUID | mounts.MS_NODEV | mounts.MS_NOATIME

_POINT: Final = os.O_PATH | os.O_DIRECTORY
_UNMOUNTS_MAX: Final = 8


def is_mounted(point: Path) -> bool:
    """Whether a file system is mounted there. False when there is no such directory; a link is DATA_LOSS."""
    if not os.path.lexists(point):
        return False
    with places.opened(point.parent, _POINT) as above, places.opened(point, _POINT) as here:
        return mountinfo.mount_id(above) != mountinfo.mount_id(here)


def mount(source: str, point: Path, kind: str, flags: int, data: str) -> None:
    """Mount on the directory, which is made when it is not there."""
    places.make_in(point.parent, point.name)
    with places.opened(point, _POINT) as descriptor:
        mounts.mount(source, f"/proc/self/fd/{descriptor}", kind, flags, data)  # no path is walked a second time


def unmount(point: Path) -> None:
    """Take it away, whoever has files open there. Nothing when nothing is mounted.

    Jobs have mounts of their own of the file system, which this neither sees nor disturbs: it ends with the last of
    them. EBUSY is about somebody who looks into this mount from the host, an administrator's shell: detached, it is
    gone for everybody else, and its device goes when he leaves.
    """
    for _ in range(_UNMOUNTS_MAX):  # one on top of another cannot be our doing, but must not stay
        if not is_mounted(point):
            return
        try:
            unmount_unused(point)
        except OSError as cause:
            if cause.errno != errno.EBUSY:
                raise
            mounts.umount2(str(point), mounts.MNT_DETACH | mounts.UMOUNT_NOFOLLOW)


def unmount_unused(point: Path) -> None:
    """Take it away. OSError EBUSY: somebody on the host uses it."""
    mounts.umount2(str(point), mounts.UMOUNT_NOFOLLOW)


def detach_below(directory: Path) -> None:
    """Take away whatever is mounted below `directory`, which is no symbolic link."""
    for point in below(directory):
        mounts.umount2(str(point), mounts.MNT_DETACH | mounts.UMOUNT_NOFOLLOW)


def below(directory: Path) -> tuple[Path, ...]:
    """Mount points below `directory`, the deepest and latest first."""
    found = mountinfo.below(mountinfo.present(), str(directory.parent.resolve() / directory.name))
    return tuple(Path(mount.point) for mount in reversed(found))
