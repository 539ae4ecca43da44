"""The file system in an image: how large the image must be, how it is made, what its superblock says. Pure.

Here: numbers and command lines. Not here: who runs them (`programs.py`, `image.py`), and what only a mounted one can
be asked (`linux/ext4.py`). Format: Documentation/filesystems/ext4/; mke2fs(8); resize2fs(8).

A volume of size S is to have exactly S for its owner, so the image is S and what the file system needs besides:

    image = S + reserve + empty + journal + per group (bitmaps, inodes) + per copy of the superblock (descriptors)

That sum is an upper estimate. What of it is not used up is given to the kernel's pool for its own needs at each mount
(`reserved_clusters`): so statvfs tells S of the empty volume, whatever the estimate was, and after it has grown too.
Root-reserved blocks (tune2fs -r) would do the same, but need a write to the device below a mounted file system.

Blocks have 4 KiB also in small volumes: then those of the image, of the loop device, of memory and of most disks are
the same. So an image has at least 9 MiB: mke2fs gives at most half of it to a journal, and without one a power cut
costs more.
"""

import struct
import uuid
from typing import Final, NamedTuple

BLOCK_BYTES: Final = 4096
BLOCKS_MIN: Final = 2304
EMPTY_BLOCKS: Final = 7
"""What the empty file system has in use: root, lost+found (4), `data`, and a block of the inode for resizing."""

EMPTY_INODES: Final = 12
"""Ten reserved ones, lost+found and `data`."""

INODE_BYTES: Final = 256
BYTES_PER_INODE: Final = 16384
INODES_MIN: Final = 2048
"""More than one for each 16 KiB in small volumes: a volume that has grown has as many for each 128 MiB as at first."""

GROUP_BLOCKS: Final = 8 * BLOCK_BYTES
_DESCRIPTORS_PER_BLOCK: Final = BLOCK_BYTES // 64
_GROW_FACTOR: Final = 1024  # mke2fs keeps descriptors for so much growth
_BLOCKS_MAX: Final = 2**32
_LAST_GROUP_SPARE: Final = 50  # a last group with less than this beside its metadata is left out
_RESERVE_MIN: Final = 64
_RESERVE_MAX: Final = 4096

# Nothing of the host's mke2fs.conf: the same file system everywhere, and one that Linux 5.4 can mount and enlarge.
FEATURES: Final = (
    "has_journal,ext_attr,resize_inode,dir_index,filetype,extent,64bit,flex_bg,sparse_super,large_file,huge_file,"
    "dir_nlink,extra_isize,metadata_csum,metadata_csum_seed"
)
MAKE_ENVIRONMENT: Final = {
    "MKE2FS_CONFIG": "/dev/null",
    "UNIX_IO_NOZEROOUT": "1",  # else it punches holes into the image where zeros are wanted
}

_SUPERBLOCK_BYTES: Final = 1024
SUPERBLOCK_OFFSET: Final = 1024
_MAGIC: Final = 0xEF53
_RECOVER: Final = 0x4


class Superblock(NamedTuple):
    """What is read of one."""

    blocks: int
    free_blocks: int
    uuid: str
    needs_recovery: bool  # its journal has what the file system has not


def round_up(size_bytes: int) -> int:
    """The size that a volume really has: whole blocks."""
    return -(-size_bytes // BLOCK_BYTES) * BLOCK_BYTES


def inodes(size_bytes: int) -> int:
    """How many files and directories a volume can have, at least."""
    return max(INODES_MIN, size_bytes // BYTES_PER_INODE)


def journal_mib(size_bytes: int) -> int:
    """Of a new file system. 4 MiB is the least that ext4 takes."""
    if size_bytes < 128 * 2**20:
        return 4
    return 16 if size_bytes < 2**30 else 64


def reserve_min(size_bytes: int) -> int:
    """Blocks that the file system must have for itself beside the volume's: extents, directories' indexes."""
    return min(max(size_bytes // BLOCK_BYTES // 50, _RESERVE_MIN), _RESERVE_MAX)


def group_blocks(inodes_per_group: int) -> int:
    """What each group needs for itself, without a copy of the superblock."""
    return 3 + -(-inodes_per_group * INODE_BYTES // BLOCK_BYTES)


def image_bytes(size_bytes: int, *, inodes_per_group: int | None = None) -> int:
    """How large the image of a volume must be. `inodes_per_group`: of a file system that is there already."""
    fixed = round_up(size_bytes) // BLOCK_BYTES + reserve_min(size_bytes) + EMPTY_BLOCKS
    fixed += journal_mib(size_bytes) * 2**20 // BLOCK_BYTES
    blocks = fixed
    while True:
        groups = -(-blocks // GROUP_BLOCKS)
        each = group_blocks(inodes_per_group or -(-inodes(size_bytes) // groups) + 8)
        copy = 1 + _descriptors(blocks)
        needed = fixed + groups * each + _copies(groups) * copy
        if 0 < needed % GROUP_BLOCKS < each + copy + _LAST_GROUP_SPARE:
            needed += each + copy + _LAST_GROUP_SPARE
        if needed <= blocks:
            return max(blocks, BLOCKS_MIN) * BLOCK_BYTES
        blocks = needed


def _descriptors(blocks: int) -> int:
    """Blocks of one copy of the group descriptors, with those kept for growth."""
    groups = -(-blocks // GROUP_BLOCKS)
    used = -(-groups // _DESCRIPTORS_PER_BLOCK)
    grown_groups = -(-min(blocks * _GROW_FACTOR, _BLOCKS_MAX) // GROUP_BLOCKS)
    kept = max(0, -(-grown_groups // _DESCRIPTORS_PER_BLOCK) - used)
    return used + min(kept, BLOCK_BYTES // 4)


def _copies(groups: int) -> int:
    """Groups with a copy of the superblock: 0, 1, and powers of 3, 5 and 7."""
    found = {number for number in (0, 1) if number < groups}
    for base in (3, 5, 7):
        power = base
        while power < groups:
            found.add(power)
            power *= base
    return len(found)


def make_arguments(
    device: str, size_bytes: int, *, identity: str, template: str, features: tuple[str, ...], zeroed: bool
) -> tuple[str, ...]:
    """For mkfs.ext4: an empty file system with what is in the directory `template`.

    `zeroed`: all of the device reads as zeros, so that tables need not be written.
    """
    lazy = f"nodiscard,lazy_itable_init=1,lazy_journal_init={int(zeroed)},root_owner=0:0"
    options = {
        "-b": str(BLOCK_BYTES),
        "-I": str(INODE_BYTES),
        "-N": str(inodes(size_bytes)),
        "-m": "0",
        "-J": f"size={journal_mib(size_bytes)}",
        "-O": ",".join(("none", FEATURES, *features)),
        "-E": lazy,
        "-U": identity,
        "-d": template,
    }
    return ("-q", "-F", *(word for option in options.items() for word in option), device)


def parse_superblock(content: bytes) -> Superblock | None:
    """Of the 1024 bytes at SUPERBLOCK_OFFSET; None: there is no such file system, or another kind of it."""
    if len(content) < _SUPERBLOCK_BYTES:
        return None
    blocks_low, _, free_low = struct.unpack_from("<III", content, 0x04)
    (log_block,) = struct.unpack_from("<I", content, 0x18)
    (magic,) = struct.unpack_from("<H", content, 0x38)
    if magic != _MAGIC or 1024 << min(log_block, 10) != BLOCK_BYTES:
        return None
    (incompatible,) = struct.unpack_from("<I", content, 0x60)
    blocks_high, _, free_high = struct.unpack_from("<III", content, 0x150)
    return Superblock(
        blocks=blocks_high << 32 | blocks_low,
        free_blocks=free_high << 32 | free_low,
        uuid=str(uuid.UUID(bytes=content[0x68:0x78])),
        needs_recovery=bool(incompatible & _RECOVER),
    )
