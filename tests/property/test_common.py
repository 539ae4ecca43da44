"""Properties of common/: what goes in comes out, and nothing that comes from outside raises anything unexpected."""

import string
from contextlib import suppress

import msgpack
from hypothesis import given, settings
from hypothesis import strategies as st

from common import quantities, records
from common.bus import codec
from common.errors import JobletError
from common.identifiers import parse_job_id, parse_job_reference, parse_key, parse_name
from common.messages.envelope import kind_of
from common.messages.topics import ENDPOINTS, EXECUTOR_COMMANDS
from common.records import CorruptRecord, Flags, Record, RecordType, Stream
from tests.golden.samples import SAMPLES, payload_of

endpoints = st.sampled_from(ENDPOINTS)
unsigned_64 = st.integers(0, 2**64 - 1)
unsigned_32 = st.integers(0, 2**32 - 1)
encoded_records = st.builds(
    records.encode,
    st.sampled_from(RecordType),
    st.binary(max_size=300),
    time_ns=unsigned_64,
    sequence=unsigned_64,
    lines=unsigned_32,
    stream=st.sampled_from(Stream),
    flags=st.sampled_from(Flags),
)
packable = st.recursive(
    st.none() | st.booleans() | st.integers(-(2**63), 2**64 - 1) | st.floats() | st.text() | st.binary(),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=5), inner, max_size=4),
    max_leaves=20,
)


def refused(parse: object, text: str) -> bool:
    """Whether `parse` refuses `text`; any exception but JobletError fails the test."""
    assert callable(parse)
    try:
        parse(text)
    except JobletError:
        return True
    return False


@given(
    st.builds(
        Record,
        st.sampled_from(RecordType),
        st.sampled_from(Stream),
        st.sampled_from(Flags),
        unsigned_64,
        unsigned_64,
        unsigned_32,
        st.binary(max_size=2000).map(memoryview),
    )
)
def test_record_round_trip(record: Record) -> None:
    """Every field and every byte of a record is read back."""
    encoded = records.encode(
        RecordType(record.type),
        bytes(record.payload),
        time_ns=record.time_ns,
        sequence=record.sequence,
        lines=record.lines,
        stream=Stream(record.stream),
        flags=Flags(record.flags),
    )
    assert records.decode(memoryview(encoded)) == (record, len(encoded))


@given(st.lists(encoded_records, max_size=5), st.data())
def test_run_of_records_cut_anywhere(run: list[bytes], data: st.DataObject) -> None:
    """Decode stops behind the longest prefix of whole records; decode_all reads exactly those."""
    whole = b"".join(run)
    cut = data.draw(st.integers(0, len(whole)))
    ends = [sum(map(len, run[:count])) for count in range(len(run) + 1)]
    expected = max(end for end in ends if end <= cut)
    end = 0
    while (decoded := records.decode(memoryview(whole)[:cut], end)) is not None:
        end = decoded[1]
    assert end == expected
    read = list(records.decode_all(memoryview(whole)[:expected]))
    assert len(read) == ends.index(expected)


@given(encoded_records, st.data())
def test_flipped_byte_never_yields_a_record(encoded: bytes, data: st.DataObject) -> None:
    """Any one damaged byte is noticed."""
    position = data.draw(st.integers(0, len(encoded) - 1))
    damaged = bytearray(encoded)
    damaged[position] ^= data.draw(st.integers(1, 255))
    try:
        decoded = records.decode(memoryview(damaged))
    except CorruptRecord:
        return
    assert decoded is None


@given(st.binary(max_size=500))
def test_any_bytes_as_records(garbage: bytes) -> None:
    """Garbage is corrupt or unfinished, and never another exception."""
    with suppress(CorruptRecord):
        records.decode(memoryview(b"JLR1" + garbage))


@given(endpoints, st.binary(max_size=500))
def test_any_bytes_as_message(endpoint: object, payload: bytes) -> None:
    """Nothing but RejectedMessage comes of random bytes."""
    refuse_or_accept(payload, endpoint)


@given(endpoints, packable)
def test_any_msgpack_as_message(endpoint: object, value: object) -> None:
    """Nothing but RejectedMessage comes of well-formed MessagePack that is no message."""
    refuse_or_accept(msgpack.packb(value), endpoint)


@settings(max_examples=300)
@given(st.sampled_from(SAMPLES), st.data())
def test_damaged_message(sample: object, data: st.DataObject) -> None:
    """A few bytes of a real message are changed, cut or added: it is refused or still a message of its endpoint."""
    kind = kind_of(type(sample))  # type: ignore[arg-type]  # sampled_from loses the element type
    endpoint = next(each for each in ENDPOINTS if any(kind_of(message) == kind for message in each.messages))
    payload = bytearray(payload_of(sample))  # type: ignore[arg-type]  # as above
    for _ in range(data.draw(st.integers(1, 4))):
        position = data.draw(st.integers(0, len(payload) - 1))
        payload[position : position + data.draw(st.integers(0, 3))] = data.draw(st.binary(max_size=3))
    refuse_or_accept(bytes(payload), endpoint)


@given(st.sampled_from(SAMPLES), st.text(max_size=8), packable)
def test_any_value_in_any_field(sample: object, name: str, value: object) -> None:
    """A field of any type in a body is refused or ignored, and never breaks the receiver."""
    unpacked = msgpack.unpackb(payload_of(sample))  # type: ignore[arg-type]  # sampled_from loses the element type
    names = [*unpacked["body"], name]
    for each in names:
        changed = unpacked | {"body": unpacked["body"] | {each: value}}
        for endpoint in ENDPOINTS:
            refuse_or_accept(msgpack.packb(changed), endpoint)


def refuse_or_accept(payload: bytes, endpoint: object) -> None:
    """Decode; a refusal must be short and have a cause that a counter can carry."""
    try:
        message = codec.decode(payload, endpoint)  # type: ignore[arg-type]  # sampled_from loses the element type
    except codec.RejectedMessage as refusal:
        rejected = refusal
    else:
        assert type(message.body) in endpoint.messages  # type: ignore[attr-defined]  # as above
        return
    assert rejected.cause.isidentifier()
    assert len(str(rejected)) < 2000


@given(st.text(max_size=60))
def test_quantities_refuse_in_words_only(text: str) -> None:
    """Any text at all is a quantity or a JobletError."""
    refused(quantities.parse_size, text)
    refused(quantities.parse_duration_ms, text)
    refused(lambda each: quantities.parse_time_ns(each, now_ns=0), text)


@given(st.text(alphabet="0123456789.-+:TZtz msKMGTBihd\u0661\uff11", max_size=40))
def test_quantities_refuse_in_words_only_near_misses(text: str) -> None:
    """So is text made of the very characters that quantities are made of."""
    refused(quantities.parse_size, text)
    refused(quantities.parse_duration_ms, text)
    refused(lambda each: quantities.parse_time_ns(each, now_ns=0), text)


@given(st.integers(0, quantities.DURATION_MS_MAX))
def test_duration_round_trip(duration_ms: int) -> None:
    """What is printed is read back exactly."""
    assert quantities.parse_duration_ms(quantities.format_duration_ms(duration_ms)) == duration_ms


@given(st.integers(0, 2**63 - 1))
def test_time_round_trip(time_ns: int) -> None:
    """To the nanosecond."""
    assert quantities.parse_time_ns(quantities.format_time_ns(time_ns), now_ns=0) == time_ns


@given(st.integers(0, 2**63 - 1))
def test_size_of_bytes_round_trip(size_bytes: int) -> None:
    """A bare number is bytes."""
    assert quantities.parse_size(str(size_bytes)) == size_bytes


@given(st.text(max_size=80))
def test_accepted_identifiers_are_harmless(text: str) -> None:
    """Whatever a parser of identifiers lets through is ASCII, printable, and no path."""
    for parse in (parse_job_id, parse_job_reference, lambda each: parse_name(each, "job")):
        if not refused(parse, text):
            assert set(text) <= set(string.ascii_letters + string.digits + "_.-")
            assert not text.startswith(".")
    if not refused(lambda each: parse_key(each, "key"), text):
        assert text.isascii()
        assert text.isprintable()


def test_the_properties_can_fail() -> None:
    """The strategies do produce messages that pass: the checks above are not empty."""
    accepted = [sample for sample in SAMPLES if type(sample) in EXECUTOR_COMMANDS.messages]
    assert accepted
    for sample in accepted:
        refuse_or_accept(payload_of(sample), EXECUTOR_COMMANDS)
