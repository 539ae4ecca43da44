"""Reading stored log files the way any gzip program does, and finding what is wrong with them.

Independent of the persist service on purpose: it checks what is on disk against the format of docs/storage-format.md
and RFC 1952, not against the code that wrote it. Memory is bounded whatever a file holds. Not here: the command
(`verify.py`).
"""

import heapq
import os
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import Annotated, Final

import msgspec

READ_BYTES: Final = 256 * 1024
INFLATED_AT_ONCE_MAX: Final = 1024 * 1024
LINE_BYTES_MAX: Final = 16 * 1024 * 1024
FINDINGS_MAX: Final = 20
STREAMS: Final = ("stdout", "stderr")
NO_STREAM: Final = "none"
"""Of a gap: nobody knows which of them the missing entries were of."""
GZIP: Final = 16 + zlib.MAX_WBITS
HEADER_BYTES: Final = 64
_FEXTRA: Final = 4

_Natural = Annotated[int, msgspec.Meta(ge=0)]
_Positive = Annotated[int, msgspec.Meta(ge=1)]


class StoredLine(msgspec.Struct, frozen=True, kw_only=True):
    """One JSON line; `gap` counts the entries that it stands for when they are missing on purpose."""

    timestamp: _Natural
    sequence: _Positive
    stream: str
    content: str | None = None
    content_b64: str | None = None
    partial: bool = False
    gap: _Natural = 0

    @property
    def entries(self) -> int:
        """How many sequence numbers the line takes."""
        return self.gap or 1


class DamagedFile(Exception):
    """The file cannot be read on from `offset` (bytes in the compressed file)."""

    def __init__(self, offset: int, why: str) -> None:
        super().__init__(f"{why} at byte {offset}")


class Report(msgspec.Struct, kw_only=True):
    """What is stored of one job, and what is wrong with it; at most `FINDINGS_MAX` findings are told."""

    job: str
    lines: int = 0
    gap_entries: int = 0
    last_sequence: int = 0
    findings: list[str] = msgspec.field(default_factory=list)

    def find(self, text: str) -> None:
        """Add a finding."""
        if len(self.findings) < FINDINGS_MAX:
            self.findings.append(text)
        elif len(self.findings) == FINDINGS_MAX:
            self.findings.append("and more")


_decoder: Final = msgspec.json.Decoder(StoredLine)


def verify_job(directory: Path) -> Report:
    """Check both files of the job in `directory`: members whole, JSON valid, no sequence missing or twice."""
    report = Report(job=directory.name)
    expected = 1
    streams = [_lines_of(directory / f"{stream}.log.gz", stream, report) for stream in STREAMS]
    # Sequences count over both streams and grow within each file, so the merge is in order and needs no memory.
    for line in heapq.merge(*streams, key=lambda line: line.sequence):
        last = line.sequence + line.entries - 1
        if line.sequence < expected:
            report.find(f"{line.stream}: sequence {line.sequence} comes twice")
        elif line.sequence > expected:
            report.find(f"{line.stream}: sequences {expected} to {line.sequence - 1} are missing")
        expected = max(expected, last + 1)
        if line.gap:
            report.gap_entries += line.gap
        else:
            report.lines += 1
    report.last_sequence = expected - 1
    return report


def read_lines(path: Path) -> Iterator[bytes]:
    """Every whole line in the members of a file. Raises DamagedFile after the last one that can be read."""
    rest = b""
    for piece in _inflated(path):
        *lines, rest = (rest + piece).split(b"\n")
        yield from lines
        if len(rest) > LINE_BYTES_MAX:
            raise DamagedFile(0, f"a line of more than {LINE_BYTES_MAX} bytes")
    if rest:
        raise DamagedFile(path.stat().st_size, "the last line has no end")


def _lines_of(path: Path, stream: str, report: Report) -> Iterator[StoredLine]:
    before = 0
    try:
        _check_headers(path, report)
        for number, text in enumerate(read_lines(path), start=1):
            try:
                line = _decoder.decode(text)
            except (msgspec.DecodeError, msgspec.ValidationError) as cause:
                report.find(f"{path.name}: line {number}: {cause}")
                continue
            if line.stream != stream and not (line.gap and line.stream == NO_STREAM):
                report.find(f"{path.name}: line {number} says stream {line.stream[:20]!r}")
            if line.sequence <= before:
                report.find(f"{path.name}: line {number}: sequence {line.sequence} after {before}")
                continue  # it would break the order of the merge, and is told
            before = line.sequence
            yield line
    except FileNotFoundError:
        return  # nothing was written to this stream
    except DamagedFile as damaged:
        report.find(f"{path.name}: {damaged}")
    except OSError as cause:
        report.find(f"{path.name}: {cause.strerror}")


def _check_headers(path: Path, report: Report) -> None:
    """Find the first member header that does not match its own checksum: gzip reads past it, the service cannot."""
    offset = 0
    with path.open("rb") as file:
        while len(header := os.pread(file.fileno(), HEADER_BYTES, offset)) == HEADER_BYTES and header[3] & _FEXTRA:
            crc, member_bytes = int.from_bytes(header[-4:], "little"), int.from_bytes(header[16:20], "little")
            if zlib.crc32(header[:-4]) != crc or member_bytes < HEADER_BYTES:
                report.find(f"{path.name}: damaged member header at byte {offset}: its entries are not found")
                return
            offset += member_bytes


def _inflated(path: Path) -> Iterator[bytes]:
    """The text of all members, piece by piece."""
    with path.open("rb") as file:
        start = 0  # of the present member
        inflater = zlib.decompressobj(GZIP)
        begun = False
        while data := file.read(READ_BYTES):
            while data:
                begun = True
                try:
                    piece = inflater.decompress(data, INFLATED_AT_ONCE_MAX)
                except zlib.error as cause:
                    raise DamagedFile(start, f"damaged gzip member ({cause})") from cause
                if piece:
                    yield piece
                data = inflater.unconsumed_tail
                if inflater.eof:
                    data = inflater.unused_data
                    start = file.tell() - len(data)
                    inflater, begun = zlib.decompressobj(GZIP), False
        while begun:  # all input is taken in, and what comes out of it may not be all out yet
            piece = inflater.decompress(b"", INFLATED_AT_ONCE_MAX)
            if piece:
                yield piece
            elif not inflater.eof:
                raise DamagedFile(start, "cut-off gzip member")
            begun = not inflater.eof
