"""Strategies of hypothesis for what arrives at the doors: messages of any protobuf type, of the bus, and broken bytes.

Belongs here: making values. Does not belong here: sending them, and what must hold (`test_fuzz_*.py`).

A text may be a token such as "@ended": `filled` puts a real id there when the message is sent, so that what hypothesis
draws does not depend on ids that differ from run to run.
"""

import struct
from collections.abc import Mapping
from typing import Any, Final, TypeAlias

import msgspec
from google.protobuf import message_factory
from google.protobuf.descriptor import Descriptor, FieldDescriptor
from google.protobuf.message import Message
from hypothesis import strategies as st

from common import records

DEPTH_MAX: Final = 4
ITEMS_MAX: Final = 4
TOKENS: Final = ("@ended", "@others", "@prefix")
STRANGER: Final = "6fa459ea-ee8a-4ca4-894e-db77e160355e"

WORDS: Final = (
    *TOKENS,
    *(
        "",
        "true",
        "/bin/sh",
        "name",
        "SIGTERM",
        "TERM",
        "KILL",
        "0",
        "-1",
        "0-1,3",
        "avg",
        "(",
        "a{1000}",
        "[[:alpha:]]",
    ),
    *("..", ".", "/", "../../etc/passwd", "//work", "/work/../x", "~", "-rf", "%00", "a\0b", "\n", "\r\n", "\x1b[2J"),
    *("CON", "cpu.max", "é", "e\u0301", "\u202eevil", "\ufeff", "\uffff", "\U0001f600", "аdmin", "x" * 64, "x" * 257),
    *("x" * 5000, "\U0001f600" * 2000, STRANGER, STRANGER.upper(), f"{{{STRANGER}}}", "e" * 8, "1e999", "NaN"),
)
TEXTS: Final = st.one_of(st.sampled_from(WORDS), st.text(max_size=30), st.text(alphabet="ab/.-_0\0", max_size=12))
BLOBS: Final = st.one_of(st.binary(max_size=40), st.sampled_from((b"", b"\0", b"\xff" * 100, bytes(70_000))))

_RANGES: Final = {
    FieldDescriptor.CPPTYPE_INT32: (-(2**31), 2**31 - 1),
    FieldDescriptor.CPPTYPE_INT64: (-(2**63), 2**63 - 1),
    FieldDescriptor.CPPTYPE_UINT32: (0, 2**32 - 1),
    FieldDescriptor.CPPTYPE_UINT64: (0, 2**64 - 1),
    FieldDescriptor.CPPTYPE_ENUM: (-(2**31), 2**31 - 1),
}


_OTHERS: Final = {
    FieldDescriptor.CPPTYPE_BOOL: st.booleans(),
    FieldDescriptor.CPPTYPE_FLOAT: st.floats(width=32),
    FieldDescriptor.CPPTYPE_DOUBLE: st.floats(),
}


def integers(low: int, high: int) -> st.SearchStrategy[int]:
    """Small ones, those at the ends, powers of two, and any."""
    edges = {low, low + 1, high, high - 1, 0, 1, -1, 2**31, 2**32, 2**53, 10**9, 10**11, 10**18, 1_700_000_000 * 10**9}
    likely = sorted(edge for edge in edges if low <= edge <= high)
    return st.one_of(st.integers(max(low, 0), min(high, 20)), st.sampled_from(likely), st.integers(low, high))


def messages(descriptor: Descriptor, depth: int = 0) -> st.SearchStrategy[Message]:
    """Messages of this type: each field left out, or set to something of its type that need make no sense."""
    fields = {field.name: _field(field, depth) for field in descriptor.fields if depth < DEPTH_MAX or not _nests(field)}
    made = message_factory.GetMessageClass(descriptor)
    return st.fixed_dictionaries({}, optional=fields).map(lambda values: made(**_one_of_each(descriptor, values)))


def _one_of_each(descriptor: Descriptor, values: Mapping[str, Any]) -> dict[str, Any]:
    """Without all but the first of a oneof, which could not be set together."""
    kept = dict(values)
    for group in descriptor.oneofs:
        for field in [field.name for field in group.fields if field.name in kept][1:]:
            del kept[field]
    return kept


def _nests(field: FieldDescriptor) -> bool:
    return field.message_type is not None


def _field(field: FieldDescriptor, depth: int) -> st.SearchStrategy[Any]:
    if field.message_type is not None and field.message_type.GetOptions().map_entry:
        key, value = (field.message_type.fields_by_name[name] for name in ("key", "value"))
        return st.dictionaries(_single(key, depth), _single(value, depth), max_size=ITEMS_MAX)
    single = _single(field, depth)
    return st.lists(single, max_size=ITEMS_MAX) if field.is_repeated else single


def _single(field: FieldDescriptor, depth: int) -> st.SearchStrategy[Any]:
    kind = field.cpp_type
    if field.message_type is not None:
        return messages(field.message_type, depth + 1)
    if field.enum_type is not None:
        named = st.sampled_from([value.number for value in field.enum_type.values])
        return st.one_of(named, integers(*_RANGES[kind]))
    if kind in _RANGES:
        return integers(*_RANGES[kind])
    if field.type == FieldDescriptor.TYPE_BYTES:
        return BLOBS
    if kind == FieldDescriptor.CPPTYPE_STRING:
        return st.one_of(st.just("@ended"), TEXTS) if "job" in field.name.lower() else TEXTS
    return _OTHERS[kind]


def filled(message: Message, tokens: Mapping[str, str]) -> Message:
    """The same with what the tokens stand for, in place."""
    for field, value in message.ListFields():
        if field.message_type is not None and field.message_type.GetOptions().map_entry:
            continue  # names and labels: a token is as good as any other
        if field.message_type is not None:
            for one in value if field.is_repeated else (value,):
                filled(one, tokens)
        elif isinstance(value, str) and value in tokens:
            setattr(message, field.name, tokens[value])
    return message


class Damage(msgspec.Struct, frozen=True):
    """What is done to bytes before they are sent: some cut off, some replaced, some added."""

    cut: float = 1.0  # how much of them is kept
    at: float = 0.0
    put: bytes = b""
    added: bytes = b""

    def of(self, data: bytes) -> bytes:
        """The bytes as they are sent."""
        kept = data[: round(len(data) * self.cut)]
        start = round(len(kept) * self.at)
        return kept[:start] + self.put + kept[start + len(self.put) :] + self.added


UNKNOWN_FIELDS: Final = (
    b"\xfa\x3f\x03abc",
    b"\xf8\xff\xff\xff\x0f\x01",
    b"\x9b\x06\x9c\x06",
    struct.pack("<BBI", 0xBD, 0x06, 7),
)
"""Fields that no message has: bytes, a number, a group, 32 bits."""

DAMAGES: Final = st.one_of(
    st.just(Damage()),
    st.just(Damage()),
    st.builds(Damage, added=st.sampled_from(UNKNOWN_FIELDS)),
    st.builds(
        Damage,
        cut=st.floats(0, 1),
        at=st.floats(0, 1),
        put=st.binary(max_size=3),
        added=st.one_of(st.just(b""), st.binary(max_size=8)),
    ),
)

MAPS: Final = st.recursive(
    st.one_of(st.none(), st.booleans(), integers(-(2**63), 2**64 - 1), st.floats(), TEXTS, BLOBS),
    lambda inner: st.one_of(
        st.lists(inner, max_size=ITEMS_MAX),
        st.dictionaries(st.one_of(TEXTS, integers(-5, 5)), inner, max_size=ITEMS_MAX),
    ),
    max_leaves=12,
)
"""Anything that MessagePack can say."""


def bodies(kind: type[msgspec.Struct], *, numbers: st.SearchStrategy[int] | None = None) -> st.SearchStrategy[Any]:
    """Structs of this type: every field of its declared type, and what it says of no sense at all."""
    plain = dict(_PLAIN)
    if numbers is not None:
        plain[msgspec.inspect.IntType] = numbers
    return _typed(msgspec.inspect.type_info(kind), plain)


_Plain: TypeAlias = Mapping[type[msgspec.inspect.Type], st.SearchStrategy[Any]]


def _typed(kind: msgspec.inspect.Type, plain: _Plain) -> st.SearchStrategy[Any]:
    match kind:
        case msgspec.inspect.StructType(cls=made, fields=fields):
            return st.fixed_dictionaries(
                {field.name: _named(field, plain) for field in fields if field.required},
                optional={field.name: _named(field, plain) for field in fields if not field.required},
            ).map(lambda values: made(**values))
        case msgspec.inspect.EnumType(cls=members):
            return st.sampled_from(list(members))
        case msgspec.inspect.UnionType(types=types):
            return st.one_of(*(_typed(one, plain) for one in types))
        case msgspec.inspect.VarTupleType(item_type=item):
            return st.lists(_typed(item, plain), max_size=ITEMS_MAX).map(tuple)
        case msgspec.inspect.DictType(key_type=key, value_type=value):
            return st.dictionaries(_typed(key, plain), _typed(value, plain), max_size=ITEMS_MAX)
        case _:
            return plain[type(kind)]


def _named(field: msgspec.inspect.Field, plain: _Plain) -> st.SearchStrategy[Any]:
    if field.name in {"job", "id"} and isinstance(field.type, msgspec.inspect.StrType):
        return st.one_of(st.sampled_from(TOKENS[:2]), TEXTS)
    if field.name == "records":
        return RECORDS
    return _typed(field.type, plain)


_PLAIN: Final[dict[type[msgspec.inspect.Type], st.SearchStrategy[Any]]] = {
    msgspec.inspect.NoneType: st.none(),
    msgspec.inspect.BoolType: st.booleans(),
    msgspec.inspect.IntType: integers(-(2**63), 2**64 - 1),
    msgspec.inspect.FloatType: st.floats(),
    msgspec.inspect.StrType: TEXTS,
    msgspec.inspect.BytesType: BLOBS,
}

RECORDS: Final = st.lists(
    st.one_of(
        BLOBS,
        st.builds(
            records.encode,
            st.sampled_from(records.RecordType),
            st.one_of(
                BLOBS, st.sampled_from((b"one\n", b"a\nb\n", b'{"reason":"x","bytes":-1}', b"{}", b"[]", b"\xff"))
            ),
            time_ns=integers(0, 2**64 - 1),
            sequence=integers(0, 2**64 - 1),
            lines=integers(0, 2**32 - 1),
            stream=st.sampled_from(records.Stream),
            flags=st.sampled_from(records.Flags),
        ),
    ),
    max_size=ITEMS_MAX,
).map(b"".join)
"""Records of a journal whose checksum is right and whose content need not be, and bytes between them."""


def placed(body: Any, tokens: Mapping[str, str]) -> Any:
    """The struct with what the tokens in its own fields stand for."""
    values = {name: getattr(body, name) for name in body.__struct_fields__}
    return msgspec.structs.replace(
        body, **{name: tokens[value] for name, value in values.items() if isinstance(value, str) and value in tokens}
    )
