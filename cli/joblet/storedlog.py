"""Reading stored log files the way any gzip program does, and finding what is wrong with them.

Independent of the persist service on purpose: it checks what is on disk against docs/storage-format.md, not against the
code that wrote it. Memory is bounded whatever a file holds. Not here: members and their checksums
(`storedmembers.py`), the command (`verify.py`).
"""

import heapq
from collections.abc import Iterator
from pathlib import Path
from typing import Annotated, Final

import msgspec

from cli.joblet.storedmembers import Damage, Member, members

FINDINGS_MAX: Final = 20
GAPS_MAX: Final = 10_000
STREAMS: Final = ("stdout", "stderr")
NO_STREAM: Final = "none"
"""Of a gap: nobody knows of which stream its entries were. Such gaps stand in the file of stdout."""
LINES_MAX: Final = 2**32 - 1
"""A header cannot say more; a gap line may stand for more."""

_Natural = Annotated[int, msgspec.Meta(ge=0)]
_Positive = Annotated[int, msgspec.Meta(ge=1)]


class StoredLine(msgspec.Struct, frozen=True, kw_only=True):
    """One JSON line; `gap` counts the entries that it stands for when they are missing and it is known why."""

    timestamp: _Natural
    sequence: _Positive
    stream: str
    content: str | None = None
    content_b64: str | None = None
    partial: bool = False
    gap: _Natural = 0
    gap_bytes: _Natural = 0
    reason: str = ""

    @property
    def entries(self) -> int:
        """How many sequence numbers the line takes."""
        return self.gap or 1


class Gap(msgspec.Struct, frozen=True, kw_only=True):
    """Entries `first` to `last` are missing, `bytes` as far as known, and the log says so itself."""

    first: int
    last: int
    count: int
    stream: str
    bytes: int
    reason: str


class Report(msgspec.Struct, kw_only=True):
    """What is stored of one job, and what is wrong with it.

    At most `FINDINGS_MAX` findings and `GAPS_MAX` gaps are told; `gaps_untold` counts the gaps beyond.
    """

    job: str
    lines: int = 0
    gap_entries: int = 0
    last_sequence: int = 0
    findings: list[str] = msgspec.field(default_factory=list)
    gaps: list[Gap] = msgspec.field(default_factory=list)
    gaps_untold: int = 0

    def find(self, text: str) -> None:
        """Add a finding."""
        if len(self.findings) < FINDINGS_MAX:
            self.findings.append(text)
        elif len(self.findings) == FINDINGS_MAX:
            self.findings.append("and more")

    def add_gap(self, line: StoredLine) -> None:
        """Add what the log says is missing."""
        self.gap_entries += line.gap
        if len(self.gaps) == GAPS_MAX:
            self.gaps_untold += 1
            return
        last = line.sequence + line.gap - 1
        stream = "" if line.stream == NO_STREAM else line.stream
        self.gaps.append(
            Gap(
                first=line.sequence,
                last=last,
                count=line.gap,
                stream=stream,
                bytes=line.gap_bytes,
                reason=line.reason,
            )
        )


_decoder: Final = msgspec.json.Decoder(StoredLine)


def verify_job(directory: Path) -> Report:
    """Check both files of the job in `directory`: members whole, as their headers say, no sequence missing or twice."""
    report = Report(job=directory.name)
    expected = 1
    files = [_File(directory, stream, report) for stream in STREAMS]
    # Sequences count over both streams and grow within each file, so the merge is in order and needs no memory.
    for line in heapq.merge(*(file.lines() for file in files), key=lambda line: line.sequence):
        last = line.sequence + line.entries - 1
        if line.sequence < expected:
            report.find(f"{line.stream}: sequence {line.sequence} comes twice")
        elif line.sequence > expected:
            report.find(f"{line.stream}: {_missing(expected, line.sequence - 1)}")
        expected = max(expected, last + 1)
        if line.gap:
            report.add_gap(line)
        else:
            report.lines += 1
    end = max(file.end_sequence for file in files)
    if end >= expected:
        report.find(f"the job ended with sequence {end}: {_missing(expected, end)}")
    report.last_sequence = expected - 1
    return report


def _missing(first: int, last: int) -> str:
    return f"sequences {first} to {last} are missing"


class _File:
    """One stream's file. `end_sequence`: the job's last one, once its end mark was read."""

    def __init__(self, directory: Path, stream: str, report: Report) -> None:
        self._path = directory / f"{stream}.log.gz"
        self._stream = stream
        self._report = report
        self._before = 0
        self._number = 0
        self.end_sequence = 0

    def lines(self) -> Iterator[StoredLine]:
        """Every line that can be read, in rising order; all else is a finding."""
        try:
            for part in members(self._path):
                if isinstance(part, Damage):
                    self._find(f"bytes {part.first} to {part.last}: {part.why}")
                else:
                    yield from self._member(part)
        except FileNotFoundError:
            return  # nothing was written to this stream
        except OSError as cause:
            self._find(str(cause.strerror))

    def _member(self, member: Member) -> Iterator[StoredLine]:
        header = member.header
        texts = member.text.split(b"\n")
        if rest := texts.pop():
            self._find(f"member at byte {member.offset}: the last line has no end ({len(rest)} bytes)")
        if header.lines == 0 and not texts:
            self.end_sequence = max(self.end_sequence, header.last_sequence)
        entries = last = 0
        first = lowest_ns = highest_ns = 0
        readable = True
        for text in texts:
            line = self._line(text)
            if line is None:
                readable = False
                continue
            entries += line.entries
            if not first:
                first, lowest_ns = line.sequence, line.timestamp
            last = line.sequence + line.entries - 1
            lowest_ns, highest_ns = min(lowest_ns, line.timestamp), max(highest_ns, line.timestamp)
            if line.sequence <= self._before:
                self._find(f"line {self._number}: sequence {line.sequence} after {self._before}")
                continue  # it would break the order of the merge, and is told
            self._before = line.sequence
            yield line
        if readable and texts:
            told = (
                header.lines,
                header.first_sequence,
                header.last_sequence,
                header.first_time_ns,
                header.last_time_ns,
            )
            held = (min(entries, LINES_MAX), first, last, lowest_ns, highest_ns)
            if told != held:
                self._find(f"member at byte {member.offset}: {_difference(told, held)}")

    def _line(self, text: bytes) -> StoredLine | None:
        self._number += 1
        try:
            line = _decoder.decode(text)
        except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as cause:
            self._find(f"line {self._number}: {cause}")
            return None
        unknown = line.stream == NO_STREAM and bool(line.gap) and self._stream == STREAMS[0]
        if line.stream != self._stream and not unknown:
            self._find(f"line {self._number} says stream {line.stream[:20]!r}")
        return line

    def _find(self, text: str) -> None:
        self._report.find(f"{self._path.name}: {text}")


def _difference(told: tuple[int, ...], held: tuple[int, ...]) -> str:
    names = ("lines", "first sequence", "last sequence", "first time", "last time")
    wrong = [
        f"{name} {said} (it is {is_so})" for name, said, is_so in zip(names, told, held, strict=True) if said != is_so
    ]
    return f"its header says {', '.join(wrong)}"
