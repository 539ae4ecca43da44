"""A job's output as its users find it: through rnx, stored or live, in the files, and in the words of `joblet verify`.

Not here: what must be true of it (`invariants.py`).
"""

import base64
import gzip
import json
import re
import subprocess
from collections.abc import Iterator
from typing import Any, Final, NamedTuple

import msgspec

from cli.client.gaps import WORDS
from cli.joblet.storedlog import STREAMS, StoredLine
from tests.e2e.node import PROGRAMS, Node, end, read_all
from tests.waiting import wait_for

UNAVAILABLE: Final = 5
"""Exit code of rnx when the node does not answer: a service is on its way back."""
GAP: Final = re.compile(r"rnx: output is missing: entr(?:y|ies) (\d+)(?: to (\d+))?(?: of \w+)? \((\d+) [^)]*\): (.+)")
REASONS: Final = {words: reason for reason, words in WORDS.items()}


class Entry(NamedTuple):
    """One entry: a line with its end, or a piece of one."""

    sequence: int
    stream: str
    data: bytes


class Gap(NamedTuple):
    """Entries that are missing, and why."""

    first: int
    lines: int
    reason: str


class Log(NamedTuple):
    """A job's output, both streams in order."""

    entries: tuple[Entry, ...]
    gaps: tuple[Gap, ...]

    @property
    def merged(self) -> bytes:
        """The bytes in the order of their sequences, which is what `rnx job log` prints."""
        return b"".join(entry.data for entry in self.entries)

    @property
    def streams(self) -> dict[str, bytes]:
        """The bytes of each stream."""
        return {name: b"".join(entry.data for entry in self.entries if entry.stream == name) for name in STREAMS}

    @property
    def last_sequence(self) -> int:
        """Of the last entry, or of the last that is missing."""
        ends = [entry.sequence for entry in self.entries[-1:]] + [gap.first + gap.lines - 1 for gap in self.gaps[-1:]]
        return max(ends, default=0)


def answer(node: Node, *arguments: str, timeout_s: float = 60.0) -> subprocess.CompletedProcess[bytes]:
    """What rnx ends with, asked again for as long as the node is not there."""

    def asked() -> subprocess.CompletedProcess[bytes] | None:
        done = node.rnx(*arguments, timeout_s=100)
        return done if done.returncode != UNAVAILABLE else None

    return wait_for(asked, timeout_s=timeout_s, what=f"an answer to rnx {arguments[0]} {arguments[1]}")


def shown(node: Node, job: str) -> Log:
    """What `rnx --json job log` shows: entries on stdout, gaps on stderr."""
    done = answer(node, "--json", "job", "log", job, "--no-follow")
    assert done.returncode == 0, done.stderr
    entries = tuple(_entry(json.loads(line)) for line in done.stdout.splitlines())
    gaps = []
    for line in done.stderr.decode().splitlines():
        found = GAP.fullmatch(line)
        assert found, f"rnx job log says {line!r}"
        gap = Gap(int(found[1]), int(found[3]), REASONS[found[4]])
        assert int(found[2] or gap.first) == gap.first + gap.lines - 1, line
        gaps.append(gap)
    return Log(entries, tuple(gaps))


def stored(node: Node, job: str) -> Log:
    """What the files hold, read as any gzip program would."""
    entries: list[Entry] = []
    gaps: list[Gap] = []
    for line in _stored_lines(node, job):
        if line.gap:
            gaps.append(Gap(line.sequence, line.gap, line.reason))
            continue
        content = line.content.encode() if line.content is not None else base64.b64decode(line.content_b64 or "")
        entries.append(Entry(line.sequence, line.stream, content if line.partial else content + b"\n"))
    return Log(tuple(sorted(entries)), tuple(sorted(gaps)))


def gap_bytes(node: Node, job: str) -> dict[int, int]:
    """How many bytes each stored gap says that it lacks, by its first sequence."""
    return {line.sequence: line.gap_bytes for line in _stored_lines(node, job) if line.gap}


def verified(node: Node) -> dict[str, dict[str, Any]]:
    """What `joblet verify --json` says of each job; AssertionError with its findings when not all are whole."""
    command = [str(PROGRAMS / "joblet"), "verify", "--base-dir", str(node.base), "--json"]
    done = subprocess.run(command, capture_output=True, check=False, timeout=100)
    assert done.returncode == 0, done.stdout + done.stderr
    return {(found := json.loads(line))["job"]: found for line in done.stdout.splitlines()}


def assert_same(found: bytes, written: bytes, what: str) -> None:
    """Equal bytes; else the first place where they differ, and not megabytes."""
    if found == written:
        return
    at = next((at for at, (one, other) in enumerate(zip(found, written, strict=False)) if one != other), None)
    at = min(len(found), len(written)) if at is None else at
    near = slice(max(0, at - 40), at + 40)
    sizes = f"{len(found)} bytes where {len(written)} were written"
    raise AssertionError(f"{what}: {sizes}, differ at {at}: {found[near]!r} and not {written[near]!r}")


class Follower:
    """A live `rnx job log`, from the first line to the job's end; every byte of it is kept."""

    def __init__(self, node: Node, job: str) -> None:
        self._process = node.background("job", "log", job)
        self._heard, self._said = read_all(self._process.stdout), read_all(self._process.stderr)

    @property
    def bytes(self) -> int:
        """How much it has printed."""
        return len(self._heard.data)

    def check(self, log: Log, *, timeout_s: float = 90.0) -> None:
        """It ended by itself, without a complaint, with exactly the bytes of `log`."""
        self._process.wait(timeout_s)
        assert self._process.returncode == 0, self._said.finished()
        assert_same(self._heard.finished(), log.merged, "a follower")
        self._said.finished()

    def close(self) -> None:
        """End it if it still runs."""
        end(self._process)


class _Stored(StoredLine, frozen=True, kw_only=True):
    """A stored line, with what a gap tells besides."""

    reason: str = ""
    gap_bytes: int = 0


_decoder: Final = msgspec.json.Decoder(_Stored)


def _stored_lines(node: Node, job: str) -> Iterator[_Stored]:
    for stream in STREAMS:
        path = node.base / "logs" / job / f"{stream}.log.gz"
        if path.exists():
            with gzip.open(path) as lines:
                yield from map(_decoder.decode, lines)


def _entry(found: dict[str, Any]) -> Entry:
    content = found["content"].encode() if "content" in found else base64.b64decode(found["content_b64"])
    return Entry(found["sequence"], found["stream"], content if found.get("partial") else content + b"\n")
