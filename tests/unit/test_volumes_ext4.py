"""How large an image is for a volume, how it is made, and what its superblock says."""

import struct
import uuid

from hypothesis import given
from hypothesis import strategies as st

from services.volumes.storage import ext4

MIB = 2**20
SIZES = st.integers(min_value=1, max_value=2**40)
IDENTITY = "6fa459ea-ee8a-4ca4-894e-db77e160355e"


@given(SIZES)
def test_an_image_has_the_volume_and_not_much_besides(size: int) -> None:
    """Whole blocks; at least a journal, the inodes and the reserve; at most 2 % and what a large journal takes."""
    image = ext4.image_bytes(size)
    assert image % ext4.BLOCK_BYTES == 0
    besides = image - ext4.round_up(size)
    assert besides >= ext4.journal_mib(size) * MIB + ext4.reserve_min(size) * ext4.BLOCK_BYTES
    assert besides >= ext4.inodes(size) * ext4.INODE_BYTES
    assert besides <= max(16 * MIB, size // 25) + 140 * MIB * (size >= 128 * MIB)


@given(SIZES, st.integers(min_value=0, max_value=2**38))
def test_a_larger_volume_has_no_smaller_image(size: int, more: int) -> None:
    """But for the groups at the edge of which a few blocks are left out, and the last of which may then have room."""
    slack = 4 * MIB
    assert ext4.image_bytes(min(size + more, 2**40)) + slack >= ext4.image_bytes(size)


@given(SIZES, st.integers(min_value=128, max_value=32768))
def test_it_is_the_same_for_a_file_system_that_is_there(size: int, inodes_per_group: int) -> None:
    """Its inodes in each group are what they are, and counted."""
    image = ext4.image_bytes(size, inodes_per_group=inodes_per_group)
    groups = -(-image // ext4.BLOCK_BYTES // ext4.GROUP_BLOCKS)
    assert image - size >= (groups - 1) * inodes_per_group * ext4.INODE_BYTES


def test_known_sizes() -> None:
    """The least is 9 MiB; what docs/volumes.md may tell."""
    assert ext4.image_bytes(1) == ext4.image_bytes(MIB) == 9 * MIB
    assert ext4.round_up(1) == ext4.round_up(4096) == 4096
    assert ext4.round_up(4097) == 8192
    assert [ext4.journal_mib(size) for size in (1, 128 * MIB - 1, 128 * MIB, 2**30 - 1, 2**30)] == [4, 4, 16, 16, 64]
    assert [ext4.inodes(size) for size in (1, 32 * MIB, 64 * MIB)] == [2048, 2048, 4096]


def test_the_command_line() -> None:
    """Nothing is discarded or taken from the host's configuration, and the device is last."""
    arguments = ext4.make_arguments(
        "/dev/loop9", MIB, identity=IDENTITY, template="/t", features=("encrypt",), zeroed=False
    )
    assert arguments[-1] == "/dev/loop9"
    options = dict(zip(arguments[2:-1:2], arguments[3:-1:2], strict=True))
    assert options["-E"] == "nodiscard,lazy_itable_init=1,lazy_journal_init=0,root_owner=0:0"
    assert options["-O"].startswith("none,has_journal,")
    assert options["-O"].endswith(",metadata_csum_seed,encrypt")
    assert (options["-m"], options["-b"], options["-U"], options["-d"]) == ("0", "4096", IDENTITY, "/t")
    assert ext4.MAKE_ENVIRONMENT == {"MKE2FS_CONFIG": "/dev/null", "UNIX_IO_NOZEROOUT": "1"}
    zeroed = ext4.make_arguments("image.new", MIB, identity=IDENTITY, template="/t", features=(), zeroed=True)
    assert "lazy_journal_init=1" in " ".join(zeroed)


def superblock(*, magic: int = 0xEF53, log_block: int = 2, incompatible: int = 0x42) -> bytes:
    """One with 2^32 + 5 blocks, 7 of them free."""
    content = bytearray(1024)
    struct.pack_into("<III", content, 0x04, 5, 0, 7)
    struct.pack_into("<I", content, 0x18, log_block)
    struct.pack_into("<H", content, 0x38, magic)
    struct.pack_into("<I", content, 0x60, incompatible)
    content[0x68:0x78] = uuid.UUID(IDENTITY).bytes
    struct.pack_into("<III", content, 0x150, 1, 0, 0)
    return bytes(content)


def test_a_superblock_is_read() -> None:
    """Both halves of its numbers, its identity, and whether the journal is to be replayed."""
    assert ext4.parse_superblock(superblock()) == ext4.Superblock(2**32 + 5, 7, IDENTITY, needs_recovery=False)
    found = ext4.parse_superblock(superblock(incompatible=0x46))
    assert found is not None
    assert found.needs_recovery


@given(st.binary(max_size=2048))
def test_anything_else_is_none(content: bytes) -> None:
    """Noise, something short, another magic number, another block size."""
    assert ext4.parse_superblock(content) is None or content[0x38:0x3A] == b"\x53\xef"
    assert ext4.parse_superblock(superblock()[:1023]) is None
    assert ext4.parse_superblock(superblock(magic=0xEF54)) is None
    for log_block in (0, 3, 2**32 - 1):
        assert ext4.parse_superblock(superblock(log_block=log_block)) is None
