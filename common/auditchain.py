"""The chain of an audit log: how a line names the one before it, and which files make one log.

Belongs here: the shape of a line and of the names, pure, for who writes (`audit.py`), who reads (`auditread.py`), and
who verifies (cli/joblet/auditverify.py). Does not belong here: files. The format is told in docs/operations.md, the
reasons in docs/adr/0024-audit-chain.md.

A line is one JSON object that begins with `number` (from 1, without a hole) and `previous`: SHA-256 (FIPS 180-4), in
hexadecimal, of the bytes of the line before without its newline. Nothing has to be encoded again to verify it. The
first line of each file says `begins`, so that a file without its first lines is not taken for one that rotation began.
"""

import hashlib
import re
from typing import Annotated, Final, Literal, NamedTuple, TypeVar

import msgspec

from common.quantities import format_time_ns

T = TypeVar("T")

FILE_NAME: Final = "audit.jsonl"
"""The file that is written now; `audit.jsonl.1` is the one before it, and so on."""
GENESIS: Final = "0" * 64
"""In place of a hash in line number 1."""
LINE_BYTES_MAX: Final = 16 * 1024
"""With its newline."""

_OLDER: Final = re.compile(re.escape(FILE_NAME) + r"\.([1-9]\d{0,5})", re.ASCII)


class Link(msgspec.Struct, frozen=True):
    """What the chain needs of a line. `torn_*`: of a Torn one."""

    number: Annotated[int, msgspec.Meta(ge=1)]
    previous: Annotated[str, msgspec.Meta(min_length=64, max_length=64)]
    begins: bool = False
    kind: str = ""
    time: str = ""
    lines: int = 0
    torn_bytes: int = 0
    torn_sha256: str = ""


class Torn(msgspec.Struct, frozen=True, kw_only=True):
    """Tells of the text between the line before and this one: a line whose writing was cut off."""

    kind: Literal["torn"] = "torn"
    time: str
    torn_bytes: int
    torn_sha256: str
    outcome: Literal["torn"] = "torn"
    why: str


class Missing(msgspec.Struct, frozen=True, kw_only=True):
    """Tells that so many lines could not be written, the first and the last at these times."""

    kind: Literal["missing"] = "missing"
    time: str
    lines: int
    first: str
    last: str
    outcome: Literal["missing"] = "missing"
    why: str


class Tail(NamedTuple):
    """The end of a file: its last whole line, and what stands behind that.

    `torn`: text that is no whole line, without its last newline. `open`: the file does not end with a newline.
    """

    number: int
    digest: str
    torn: bytes
    open: bool


def digest(line: bytes) -> str:
    """The hash by which the next line names this one; `line` without its newline."""
    return hashlib.sha256(line).hexdigest()


def chained(number: int, previous: str, body: bytes, *, begins: bool = False) -> bytes:
    """The line, without its newline, of a JSON object that is not empty. `begins`: it is the first of its file."""
    mark = b'"begins":true,' if begins else b""
    return b'{"number":%d,"previous":"%s",%s%s' % (number, previous.encode(), mark, body[1:])


def link_of(line: bytes) -> Link | None:
    """The chain's part of a line without its newline; None: it is no whole line of a chain."""
    return decoded(_links, line)


def decoded(decoder: "msgspec.json.Decoder[T]", line: bytes) -> T | None:
    """What `decoder` makes of a line; None: nothing. Deep nesting and invalid UTF-8 are no exceptions here."""
    try:
        return decoder.decode(line)
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError):
        return None


def torn(text: bytes, *, time_ns: int) -> Torn:
    """The line that tells of `text`."""
    return Torn(
        time=format_time_ns(time_ns),
        torn_bytes=len(text),
        torn_sha256=digest(text),
        why=f"{len(text)} bytes before this line are no whole line: its writing was cut off",
    )


def missing(lines: int, *, first_ns: int, last_ns: int, time_ns: int) -> Missing:
    """The line that tells of lines that could not be written."""
    first, last = format_time_ns(first_ns), format_time_ns(last_ns)
    are = "line is" if lines == 1 else "lines are"
    return Missing(
        time=format_time_ns(time_ns),
        lines=lines,
        first=first,
        last=last,
        why=f"{lines} {are} missing here, from {first} to {last}: the file could not be written",
    )


def tail_of(data: bytes, *, whole: bool) -> Tail | None:
    """The tail of a file that ends with `data`; `whole`: that is all of it. None: no line of a chain is in it."""
    start = 0 if whole else data.find(b"\n") + 1
    end = len(data)
    while end > start:
        begin = data.rfind(b"\n", start, end) + 1 or start
        link = link_of(data[begin:end])
        if link is not None:
            behind = data[end + 1 :]
            return Tail(link.number, digest(data[begin:end]), behind.removesuffix(b"\n"), data[-1:] != b"\n")
        end = begin - 1
    return None


def older_number(name: str) -> int | None:
    """The n of `audit.jsonl.n`; None for every other name."""
    match = _OLDER.fullmatch(name)
    return int(match[1]) if match else None


_links: Final = msgspec.json.Decoder(Link)
