"""The mount of an image: image → loop device → mapping, where it is encrypted → file system → exactly the size.

Every step finds what is there already. Not here: snapshots and copies (`image.py`), the file itself (`imagefile.py`).
"""

import errno
import os
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Final, Protocol

import structlog

from common.errors import JobletError, precondition
from common.failpoints import reached
from common.identifiers import VolumeId
from common.linux.files import synchronize_file_system
from common.patience import looks
from services.volumes.encryption.choose import Encryption
from services.volumes.linux import ext4 as kernel
from services.volumes.storage import ext4, imagefile, loops, mounting, places

log = structlog.get_logger(__name__)

_OPTIONS: Final = "errors=remount-ro"
_DAMAGES: Final = frozenset({errno.EUCLEAN, errno.EBADMSG, errno.EINVAL, errno.EIO})
_CANNOT_GROW_MOUNTED: Final = frozenset({errno.EPERM, errno.EOPNOTSUPP, errno.ENOTTY})
_FITS_MAX: Final = 4
_ST_RDONLY: Final = 1
_MOMENT_S: Final = 2.0
_POLL_S: Final = 0.02


class Kernel(Protocol):
    """What a host may refuse: growing a file system that is mounted."""

    def grow(self, mounted: int, blocks: int) -> None:
        """See linux/ext4.py."""


class ImageMount:
    """The image of one volume, in `home`. Holds no descriptor between two calls."""

    def __init__(
        self,
        home: Path,
        volume: VolumeId,
        size_bytes: int,
        encryption: Encryption | None,
        kernel_calls: Kernel = kernel,
    ) -> None:
        self._home = home
        self._volume = volume
        self._size_bytes = size_bytes
        self._encryption = encryption
        self._kernel = kernel_calls
        self.point = home / mounting.MOUNT

    @property
    def is_mounted(self) -> bool:
        """By us, here; jobs may have it although it is not."""
        return mounting.is_mounted(self.point)

    def mount(self, key: bytes) -> None:
        """Mount it, or find it mounted; then it has its size. DATA_LOSS: the image is not what it was."""
        with imagefile.opened(self._home / imagefile.IMAGE) as image:
            found = self.is_mounted
            if found:
                self._expect(image)
            else:
                self._mount(image, key)
            try:
                self._fit(image, key)
            except BaseException:
                if not found:
                    self.unmount()
                raise

    def unmount(self) -> None:
        """Let it go, with mapping and device. All that was written until now is in the image then."""
        self._synchronize()
        mounting.unmount(self.point)
        reached("volumes.unmounted")
        if self._encryption is not None:
            self._encryption.close(self._volume)
        # Without its image there is no device to look for.
        with suppress(JobletError), imagefile.opened(self._home / imagefile.IMAGE) as image:
            loops.release(image)

    @contextmanager
    def device(self, image: int, key: bytes) -> Iterator[str]:
        """The block device with the file system of `image`, which is not mounted; let go afterwards."""
        with loops.attached(image) as device:
            if self._encryption is None:
                yield device
                return
            try:
                yield self._encryption.open(device, self._volume, key)
            finally:
                self._encryption.close(self._volume)

    def _synchronize(self) -> None:
        """The unmount does it only where it is the last one, and who lags behind is not waited for by a copy."""
        if self.is_mounted:
            try:
                with places.opened(self.point) as mounted:
                    synchronize_file_system(mounted)
            except OSError as cause:  # the unmount would not have told
                log.error("what was written last to a volume is lost", volume=self._volume, problem=str(cause))

    def _mount(self, image: int, key: bytes) -> None:
        with loops.attached(image) as device:
            reached("volumes.device")
            try:
                block = device if self._encryption is None else self._encryption.open(device, self._volume, key)
                imagefile.check(block, self._volume)
                self._mount_block(block)
            except BaseException:
                if self._encryption is not None:
                    self._encryption.close(self._volume)
                raise

    def _mount_block(self, block: str) -> None:
        # A new image is zeros, its tables of inodes too; below a mapping zeros are noise, and the kernel writes them.
        options = _OPTIONS if self._encryption is not None else f"{_OPTIONS},noinit_itable"
        try:
            mounting.mount(block, self.point, "ext4", mounting.FLAGS, options)
        except OSError as cause:
            if cause.errno in _DAMAGES:
                raise imagefile.damaged(self._volume, str(cause.strerror)) from cause
            raise

    def _expect(self, image: int) -> None:
        with places.opened(self.point) as mounted:
            number = os.fstat(mounted).st_dev
        if not loops.holds(f"{os.major(number)}:{os.minor(number)}", image):
            raise places.data_loss(
                f"what is mounted on {self.point} is not the image of volume {self._volume}",
                "unmount it, and look who replaced the image",
            )

    def _fit(self, image: int, key: bytes) -> None:
        """The volume has exactly its size: the file system is large enough, and keeps all the rest for itself."""
        for attempt in range(_FITS_MAX):
            short = self._reserve()
            if not short:
                return
            self._grow(image, key, short if attempt else 0)
        raise imagefile.damaged(self._volume, f"it cannot be made large enough for {self._size_bytes} bytes")

    def _reserve(self) -> int:
        """Blocks that the file system is too small; 0: it has exactly the volume's size for its owner now."""
        with places.opened(self.point) as mounted:
            figures = os.fstatvfs(mounted)
            if figures.f_flag & _ST_RDONLY:
                raise imagefile.damaged(self._volume, "the kernel found an error in it and stopped writing")
            spare = figures.f_blocks - ext4.EMPTY_BLOCKS - ext4.round_up(self._size_bytes) // ext4.BLOCK_BYTES
            least = ext4.reserve_min(self._size_bytes)
            if spare < least:
                return least - spare
            kernel.reserve(mounted, spare)
        return 0

    def _grow(self, image: int, key: bytes, more: int) -> None:
        """The file system becomes as large as the image, and that as large as the size needs, and `more` blocks."""
        before = os.fstat(image).st_size
        self._enlarge_file(image, more)
        loops.take_size(image)
        if self._encryption is not None:
            self._encryption.grow(self._volume, key)
        try:
            with places.opened(self.point) as mounted:
                self._kernel.grow(mounted, os.fstat(image).st_size // ext4.BLOCK_BYTES)
        except OSError as cause:
            if cause.errno not in _CANNOT_GROW_MOUNTED:
                raise
            self._grow_unmounted(image, key, before, cause)

    def _enlarge_file(self, image: int, more: int) -> None:
        with places.opened(self.point) as mounted:
            files = os.fstatvfs(mounted).f_files
        present = os.fstat(image).st_size
        groups = -(-present // ext4.BLOCK_BYTES // ext4.GROUP_BLOCKS)
        each = -(-files // groups)
        needed = ext4.image_bytes(self._size_bytes, inodes_per_group=each)
        if more:
            needed = max(needed, present + (more + ext4.group_blocks(each)) * ext4.BLOCK_BYTES)
        if needed > present:
            imagefile.allocate(image, needed)

    def _grow_unmounted(self, image: int, key: bytes, before: int, refused: OSError) -> None:
        """A host whose root lacks CAP_SYS_RESOURCE cannot do it while it is used. `before`: size of the image then."""
        with _cut_back(image, before):
            try:
                mounting.unmount_unused(self.point)
            except OSError as cause:
                raise self._in_use(refused) from cause
        try:
            with loops.attached(image) as device:
                with _cut_back(image, before):
                    block = device if self._encryption is None else self._encryption.open(device, self._volume, key)
                    self._expect_unused(block, refused)
                # From here on the file system may reach to the image's new end, whatever fails.
                imagefile.enlarge(block)
        finally:
            self._mount(image, key)

    def _expect_unused(self, block: str, refused: OSError) -> None:
        """A mount anywhere holds the device exclusively.

        That of a job which is only just starting or ending, and has a copy of all that is mounted on the host, goes in
        a moment; that of a job which has the volume stays.
        """
        for _ in looks(_MOMENT_S, pause_s=_POLL_S):
            with suppress(OSError):
                os.close(os.open(block, os.O_RDONLY | os.O_EXCL | os.O_CLOEXEC))
                return
        raise self._in_use(refused)

    def _in_use(self, refused: OSError) -> Exception:
        return precondition(
            f"volume {self._volume} cannot grow while a job uses it: {refused}",
            "try again when no job uses it, or give the node CAP_SYS_RESOURCE",
        )


@contextmanager
def _cut_back(image: int, size_bytes: int) -> Iterator[None]:
    """What fails in here leaves the image as large as it was: the file system knows nothing of what is behind."""
    try:
        yield
    except JobletError:
        os.ftruncate(image, size_bytes)
        loops.take_size(image)
        raise
