"""The record format: golden bytes of version 1, and what is refused."""

import os
import struct
import zlib

import pytest

from common import records
from common.records import CorruptRecord, Flags, RecordType, Stream

GOLDEN_OUTPUT = bytes.fromhex(
    "4a4c5231"  # magic
    "02"  # OUTPUT
    "01"  # stdout
    "0000"  # no flags
    "15cdc0081710a617"  # time_ns
    "0700000000000000"  # sequence
    "02000000"  # lines
    "05000000"  # length
    "514fe36f"  # CRC-32
    "610a00ff0a"  # "a\n\0\xff\n"
)
TIME_NS = 1_704_067_200_123_456_789
OUTPUT = records.encode(RecordType.OUTPUT, b"a\n\x00\xff\n", time_ns=TIME_NS, sequence=7, lines=2, stream=Stream.STDOUT)


def crc_fixed(record: bytes) -> bytes:
    """The record with its checksum made right again."""
    crc = zlib.crc32(record[36:], zlib.crc32(record[:32]))
    return record[:32] + struct.pack("<I", crc) + record[36:]


def outcome_of(data: bytes) -> str:
    """What the bytes are to a reader."""
    try:
        return "unfinished" if records.decode(memoryview(data)) is None else "record"
    except CorruptRecord:
        return "corrupt"


def test_bytes_of_version_1_do_not_change() -> None:
    """A journal that an older monitor wrote is read for ever."""
    assert OUTPUT.hex() == GOLDEN_OUTPUT.hex()


def test_every_field_is_read_back() -> None:
    """NUL and invalid UTF-8 included."""
    decoded = records.decode(memoryview(OUTPUT))
    assert decoded is not None
    record, end = decoded
    assert end == len(OUTPUT)
    assert record[:6] == (RecordType.OUTPUT, Stream.STDOUT, Flags.NONE, TIME_NS, 7, 2)
    assert bytes(record.payload) == b"a\n\x00\xff\n"
    assert record.last_sequence == 8
    assert not record.partial


def test_partial_record() -> None:
    """A piece of a line is one entry without a line end."""
    record = next(
        records.decode_all(
            records.encode(
                RecordType.OUTPUT, b"x" * 10, time_ns=1, sequence=1, lines=1, stream=Stream.STDERR, flags=Flags.PARTIAL
            )
        )
    )
    assert record.partial
    assert record.last_sequence == 1


def test_record_without_entries_ends_before_its_sequence() -> None:
    """START and EXIT name the entry that would come next."""
    record = next(records.decode_all(records.encode(RecordType.EXIT, b"{}", time_ns=1, sequence=12)))
    assert record.last_sequence == 11


@pytest.mark.threat("F12")
def test_cut_off_at_every_byte() -> None:
    """A record that is not all there is none, and everything before it still counts."""
    for length in range(len(OUTPUT)):
        torn = OUTPUT + OUTPUT[:length]
        view = memoryview(torn)
        whole = records.decode(view)
        assert whole is not None
        assert whole[1] == len(OUTPUT)
        assert records.decode(view, len(OUTPUT)) is None
        if length:
            with pytest.raises(CorruptRecord) as caught:
                list(records.decode_all(torn))
            assert caught.value.offset == len(OUTPUT)


@pytest.mark.threat("F11")
def test_flipped_bit_at_every_position() -> None:
    """No flipped bit yields a record: it is corrupt, or (in the length) not all there."""
    for position in range(len(OUTPUT)):
        for bit in range(8):
            damaged = bytearray(OUTPUT)
            damaged[position] ^= 1 << bit
            outcome = outcome_of(bytes(damaged))
            longer = position in range(28, 32) and damaged[28:32] > OUTPUT[28:32]
            assert outcome == "corrupt" or (longer and outcome == "unfinished"), (position, bit)


def test_length_over_the_limit_is_corrupt_and_not_waited_for() -> None:
    """Four flipped bytes must not make a reader wait for 4 GiB."""
    too_long = crc_fixed(OUTPUT[:28] + struct.pack("<I", records.PAYLOAD_BYTES_MAX + 1) + OUTPUT[32:])
    with pytest.raises(CorruptRecord, match="over"):
        records.decode(memoryview(too_long))


def test_garbage_is_corrupt() -> None:
    """Bytes without the magic are no record."""
    garbage = os.urandom(records.HEADER_BYTES).replace(b"JLR1", b"xxxx")
    with pytest.raises(CorruptRecord, match="magic"):
        records.decode(memoryview(garbage))


def test_largest_payload() -> None:
    """A record holds PAYLOAD_BYTES_MAX bytes; the monitor never makes a larger one."""
    record = records.encode(RecordType.OUTPUT, b"\n" * records.PAYLOAD_BYTES_MAX, time_ns=1, sequence=1, lines=2**21)
    decoded = records.decode(memoryview(record))
    assert decoded is not None
    assert decoded[1] == len(record)
    with pytest.raises(AssertionError):
        records.encode(RecordType.OUTPUT, b"\n" * (records.PAYLOAD_BYTES_MAX + 1), time_ns=1, sequence=1)


def test_offsets_are_kept_inside_a_larger_buffer() -> None:
    """Decoding begins where it is told."""
    decoded = records.decode(memoryview(b"junk" + OUTPUT), 4)
    assert decoded is not None
    assert decoded[1] == 4 + len(OUTPUT)
