"""Is an audit log whole? Walks the files of one service's log and follows the chain (common/auditchain.py).

Belongs here: from files to a report. Does not belong here: printing it (`verify.py`). What each finding means, and what
the chain cannot show, is told in docs/operations.md.

The end of the log is only as sure as what somebody kept of it: with a head (number and hash of a line) that was printed
before, a log that was cut off or written anew is found, too.
"""

import hashlib
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Final, NamedTuple

import msgspec

from common import auditchain
from common.auditchain import FILE_NAME, GENESIS, LINE_BYTES_MAX, Link
from common.auditread import Opened, opened

FINDINGS_MAX: Final = 100
"""Told one by one; more are counted."""
NO_LINE: Final = "this is no line of the log: it was changed, inserted or torn"
SETTLE_S: Final = 0.1
SETTLE_TURNS: Final = 10
"""How often, and how long each time, a line that the service is just writing is waited for."""


class Head(NamedTuple):
    """A line that somebody remembers. `number` 0 or `digest` empty: not known."""

    number: int = 0
    digest: str = ""


class Report(msgspec.Struct, kw_only=True):
    """What was found in the log of one service. `head` is the hash of its last line."""

    source: str
    directory: str
    files: list[str]
    lines: int = 0
    first_number: int = 0
    first_time: str = ""
    last_number: int = 0
    last_time: str = ""
    head: str = ""
    torn: int = 0
    missing: int = 0
    notes: list[str] = []
    findings: list[str] = []
    findings_untold: int = 0


def verify_audit(
    directory: Path, source: str, head: Head | None = None, *, sleep: Callable[[float], None] = time.sleep
) -> Report:
    """Read all files of the log in `directory`. Raises OSError."""
    with opened(directory) as files:
        report = Report(source=source, directory=str(directory), files=[file.name for file in files])
        walk = _Walk(report, head, sleep)
        for file in files:
            walk.file(file)
        return walk.report_of_end()


class _Text:
    """Text between two lines of the chain, without its last newline; of any size."""

    def __init__(self) -> None:
        self.begins_at = 0
        self.size_bytes = 0
        self._hash = hashlib.sha256()
        self._newline = b""

    @property
    def digest(self) -> str:
        """Of all of it."""
        return self._hash.hexdigest()

    def add(self, number: int, line: bytes) -> None:
        """Line `number` of the file, or a piece of it, belongs to it."""
        self.begins_at = self.begins_at or number
        text = line.removesuffix(b"\n")
        self._hash.update(self._newline + text)
        self.size_bytes += len(self._newline + text)
        self._newline = line[len(text) :]


class _Walk:
    """Goes through the lines in order. `file`, then `report_of_end`."""

    def __init__(self, report: Report, head: Head | None, sleep: Callable[[float], None]) -> None:
        self._report = report
        self._sleep = sleep
        self._head = head
        self._head_found = False
        self._digest = ""
        self._torn = _Text()
        self._name = ""
        self._first = True

    def file(self, file: Opened) -> None:
        """Follow the chain through one file."""
        self._name, self._first = file.name, True
        number, line = 1, b"\n"
        for number, line in enumerate(_lines(file, self._sleep), 1):
            link = auditchain.link_of(line.removesuffix(b"\n")) if len(line) <= LINE_BYTES_MAX else None
            if link is None:
                self._torn.add(number, line)
            else:
                self._line(number, link, line.removesuffix(b"\n"))
        if not line.endswith(b"\n"):
            self._find(number, "the last line has no end: its writing was cut off, or the file was")
        if self._torn.begins_at:
            self._find(self._torn.begins_at, NO_LINE)
            self._torn = _Text()

    def report_of_end(self) -> Report:
        """The report, with what the remembered head says."""
        report, head = self._report, self._head
        report.head = self._digest
        if head is None:
            return report
        which = f"line number {head.number}" if head.number else f"the line with the hash {head.digest}"
        if head.number and report.lines and head.number < report.first_number:
            report.notes.append(f"{which} was rotated away: the log begins with number {report.first_number}")
        elif head.number > report.last_number:
            text = f"{which} is not there: the log ends with number {report.last_number}, and was cut off"
            self._find_at_end(text)
        elif head.digest and not self._head_found:
            text = f"{which} is not there: the log was cut off or written anew"
            self._find_at_end(f"{which} has another hash: it was written anew" if head.number else text)
        return report

    def _line(self, number: int, link: Link, line: bytes) -> None:
        report = self._report
        self._check_place(number, link)
        if not report.lines:
            report.first_number, report.first_time = link.number, link.time
            if (link.number == 1) != (link.previous == GENESIS):
                self._find(number, f"number {link.number} names {link.previous[:16]}… as the line before it")
        else:
            self._check_order(number, link)
        self._digest = auditchain.digest(line)
        report.lines += 1
        report.last_number, report.last_time = link.number, link.time
        if link.kind == "missing":
            report.missing += link.lines
            report.notes.append(f"{self._name}:{number}: says that {link.lines} lines could not be written")
        head = self._head
        if head and head.digest == self._digest and head.number in (0, link.number):
            self._head_found = True

    def _check_order(self, number: int, link: Link) -> None:
        last = self._report.last_number
        if link.number == last + 1:
            if link.previous != self._digest:
                self._find(number, f"the line before it, number {last}, was changed: it has another hash")
        elif link.number > last + 1:
            gone = f"{last + 1}" if link.number == last + 2 else f"{last + 1} to {link.number - 1}"
            self._find(number, f"number {gone} is missing before it: removed, or moved")
        else:
            self._find(number, f"number {link.number} stands behind {last}: moved, inserted, or the log begun anew")

    def _check_place(self, number: int, link: Link) -> None:
        """Text that is no line must be told of by the line behind it; the first line of a file says that it is."""
        text, self._torn = self._torn, _Text()
        first, self._first = self._first, False
        if link.begins and (text.begins_at or not first):
            self._find(number, "this line was the first of a file: it was moved, or files were joined")
        if first and not link.begins and text.begins_at != 1:
            self._find(number, "the lines before it are missing: it was not the first of its file")
        if link.kind == "torn" and (link.torn_bytes, link.torn_sha256) == (text.size_bytes, text.digest):
            self._report.torn += 1
            where = f"{self._name}:{text.begins_at or number}"
            self._report.notes.append(f"{where}: a torn line of {text.size_bytes} bytes, told by the next")
        elif link.kind == "torn":
            self._find(number, "the torn line that it tells of is another one, or gone")
        elif text.begins_at:
            self._find(text.begins_at, NO_LINE)

    def _find(self, number: int, text: str) -> None:
        self._find_at_end(f"{self._name}:{number}: {text}")

    def _find_at_end(self, text: str) -> None:
        if len(self._report.findings) < FINDINGS_MAX:
            self._report.findings.append(text)
        else:
            self._report.findings_untold += 1


def _lines(file: Opened, sleep: Callable[[float], None]) -> Iterator[bytes]:
    """The lines with their newlines, in pieces where one is longer than a line may be."""
    with open(file.descriptor, "rb", closefd=False) as stream:
        turns = SETTLE_TURNS if file.name == FILE_NAME else 0
        while line := stream.readline(LINE_BYTES_MAX):
            while not line.endswith(b"\n") and len(line) < LINE_BYTES_MAX and turns:
                turns -= 1
                sleep(SETTLE_S)
                line += stream.readline(LINE_BYTES_MAX - len(line))
            yield line
