"""One gzip member: its bytes are fixed, and no damage to it goes unseen."""

import gzip
import zlib

import pytest
from isal import igzip_lib

from services.persist import member
from services.persist.member import DamagedMember, Header, Span

SPAN = Span(3, 7, 9, 100, 200)
TEXT = b'{"a":1}\n' * 3


def test_header_bytes_are_those_of_the_format() -> None:
    """The first 64 bytes are what docs/storage-format.md says; a change of them is a new format."""
    content = member.build(TEXT, SPAN, level=1)
    golden = (
        "1f8b080400000000" "00ff" "3400" "4a4c3000"
        f"{len(content):02x}000000" "18000000" "03000000"
        "0700000000000000" "0900000000000000" "6400000000000000" "c800000000000000"
    )  # fmt: skip
    assert content[:60].hex() == golden
    assert member.parse_header(content) == Header(len(content), len(TEXT), SPAN)


@pytest.mark.requirement("S0.10")
def test_every_gzip_reader_reads_a_member() -> None:
    """The standard library inflates members of all levels, one behind the other."""
    content = b"".join(member.build(TEXT, SPAN, level=level) for level in range(4)) + member.end_mark(9, 0)
    assert gzip.decompress(content) == TEXT * 4


def test_inflate_gives_the_text_back() -> None:
    """Empty, small and large texts come back."""
    for text in (b"", TEXT, bytes(range(256)) * 40_000):
        content = member.build(text, SPAN, level=1)
        header = member.parse_header(content)
        assert header is not None
        assert member.inflate(content, header) == text


def test_every_flipped_bit_is_seen() -> None:
    """A flipped bit at any place makes the header or the content invalid; nothing wrong is ever returned."""
    content = member.build(TEXT, SPAN, level=1)
    header = member.parse_header(content)
    assert header is not None
    for position in range(len(content) * 8):
        damaged = bytearray(content)
        damaged[position // 8] ^= 1 << position % 8
        with pytest.raises(DamagedMember):
            member.inflate(bytes(damaged), header)


def test_every_cut_is_seen() -> None:
    """A member cut off at any byte is damaged."""
    content = member.build(TEXT, SPAN, level=1)
    header = member.parse_header(content)
    assert header is not None
    for size in range(len(content)):
        with pytest.raises(DamagedMember):
            member.inflate(content[:size], header)


@pytest.mark.threat("C22")
def test_a_bomb_is_not_inflated_beyond_what_it_declares() -> None:
    """A member that holds more than its header says is damaged; one that declares too much is no member."""
    bomb = igzip_lib.compress(b"\0" * 50_000_000, 1, igzip_lib.COMP_DEFLATE)
    honest = member.build(TEXT, SPAN, level=1)
    lying = _with_length(honest[:64], 64 + len(bomb) + 8) + bomb + honest[-8:]
    header = member.parse_header(lying)
    assert header is not None
    with pytest.raises(DamagedMember):
        member.inflate(lying, header)
    assert member.parse_header(_with_length(honest[:64], len(honest), inflated=member.INFLATED_BYTES_MAX + 1)) is None


@pytest.mark.parametrize("at", [28, 36])
def test_a_header_with_a_sequence_that_cannot_be_is_none(at: int) -> None:
    """Nothing that counts in 63 bits has to be afraid of what a file says, checksum or not."""
    honest = member.build(TEXT, SPAN, level=1)
    assert member.parse_header(_changed(honest[:64], at, (2**63 - 1).to_bytes(8, "little"))) is not None
    assert member.parse_header(_changed(honest[:64], at, (2**63).to_bytes(8, "little"))) is None


def test_find_header_skips_what_only_looks_like_one() -> None:
    """The magic alone is no header: its checksum must hold."""
    content = member.build(TEXT, SPAN, level=1)
    noise = b"xx" + content[:20] + b"yy"
    assert member.find_header(noise + content, 0) == len(noise)
    assert member.find_header(noise, 0) == -1


def test_a_gap_of_more_lines_than_the_field_holds_is_clamped() -> None:
    """2**40 missing entries do not break the header."""
    content = member.build(b"{}", Span(2**40, 1, 2**40, 0, 0), level=1)
    header = member.parse_header(content)
    assert header is not None
    assert header.span.lines == 2**32 - 1


def _with_length(header: bytes, member_bytes: int, *, inflated: int | None = None) -> bytes:
    changed = _changed(header, 16, member_bytes.to_bytes(4, "little"))
    return changed if inflated is None else _changed(changed, 20, inflated.to_bytes(4, "little"))


def _changed(header: bytes, at: int, field: bytes) -> bytes:
    """`header` with another field, and the checksum that goes with it."""
    changed = bytearray(header)
    changed[at : at + len(field)] = field
    changed[60:64] = zlib.crc32(bytes(changed[:60])).to_bytes(4, "little")
    return bytes(changed)
