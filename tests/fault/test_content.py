"""What a job may write: lines without an end, bytes of every kind, and what becomes small when it is compressed."""

import base64
import hashlib
import json
import os
import pty
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import IO, Any, Final

import pytest

from common.records import PARTIAL_BYTES
from tests.e2e.node import Node, end
from tests.fault.disks_nodes import (
    MIB,
    Services,
    assert_nothing_of_jobs_left,
    assert_whole,
    fresh_node,
    monitor_of,
    needs_root,
    peak_bytes,
    wait_until_stored,
)
from tests.unit.test_persist_journal import run_program
from tests.waiting import wait_for

pytestmark = [needs_root, pytest.mark.timeout(7200)]

LONG_LINE_BYTES: Final = int(os.environ.get("JOBLET_TEST_LINE_BYTES", 256 * MIB))
SERVICE_GROWTH_MAX: Final = 192 * MIB
MONITOR_PEAK_MAX: Final = 32 * MIB
BOMB_BYTES: Final = 300_000_000
PATIENCE_S: Final = max(60.0, LONG_LINE_BYTES / 2_000_000)
LONG_LINES: Final = {
    "zeros": "head -c {count} /dev/zero",
    "noise": "head -c {raw} /dev/zero | openssl enc -aes-128-ctr -nosalt -K 01 -iv 0 2>/dev/null | base64 -w 0",
}


@pytest.fixture(scope="module")
def node() -> Iterator[Node]:
    """The node that all of these jobs run on."""
    with fresh_node("content") as made:
        yield made


def hashed(stream: IO[bytes] | None, at_each_mib: Callable[[], None] = lambda: None) -> tuple[str, int]:
    """SHA-256 and length of what comes out of a pipe, without holding it."""
    assert stream is not None
    digest, size = hashlib.sha256(), 0
    while chunk := stream.read(MIB):
        digest.update(chunk)
        size += len(chunk)
        if len(chunk) == MIB:
            at_each_mib()
    return digest.hexdigest(), size


def hashed_command(*command: str) -> tuple[str, int]:
    """The same of what a program prints; it must succeed."""
    with subprocess.Popen(command, stdout=subprocess.PIPE) as process:
        found = hashed(process.stdout)
    assert process.returncode == 0, command
    return found


@pytest.mark.threat("C18")
@pytest.mark.requirement("S3.13")
@pytest.mark.parametrize("kind", LONG_LINES)
def test_one_very_long_line(node: Node, kind: str) -> None:
    """Memory stays flat in every process, and live, stored and written bytes are the same."""
    script = LONG_LINES[kind].format(count=LONG_LINE_BYTES, raw=LONG_LINE_BYTES // 4 * 3) + "; echo; echo next"
    services = Services(node)
    held = f"while [ ! -e /tmp/go ]; do sleep 0.02; done; {script}; while [ ! -e /tmp/seen ]; do sleep 0.02; done"
    job = node.detached("--timeout", f"{round(10 * PATIENCE_S)}s", "--", "sh", "-c", held)
    monitor = monitor_of(node, job)
    inside = Path(f"/proc/{node.status(job)['pid']}/root/tmp")
    peaks: list[int] = []
    follower = node.background("job", "log", job)

    def look() -> None:
        """The job does not end before its monitor was looked at behind the last whole MiB."""
        peaks.append(peak_bytes(monitor))
        if len(peaks) == LONG_LINE_BYTES // MIB:
            (inside / "seen").touch()

    try:
        wait_for(
            lambda: json.loads(node.ok("--json", "node", "info"))["counters"]["api.followers"], what="the follower"
        )  # else the monitor may be gone before the first byte is read here
        (inside / "go").touch()
        live = hashed(follower.stdout, look)
        assert follower.wait(PATIENCE_S) == 0
    finally:
        end(follower)
    assert 0 < max(peaks) < MONITOR_PEAK_MAX
    expected = hashed_command("sh", "-c", script)
    assert live == expected
    assert expected[1] == LONG_LINE_BYTES + len("\nnext\n")
    wait_until_stored(node, [job], timeout_s=PATIENCE_S)
    services.assert_bounded(SERVICE_GROWTH_MAX)
    assert hashed_command(*node.command("job", "log", job, "--no-follow")) == expected
    assert_pieces_of_one_line(node.base / "logs" / job / "stdout.log.gz")
    services.assert_same()
    services.assert_bounded(SERVICE_GROWTH_MAX)
    print(f"the monitor's peak: {max(peaks) / MIB:.1f} MiB")  # noqa: T201  # for a run by hand
    node.ok("job", "delete", job)


def assert_pieces_of_one_line(stored: Path) -> None:
    """All entries but the last two are partial and none is larger than a piece may be; the last one is `next`."""
    last: list[tuple[bytes, bool]] = []
    with subprocess.Popen(["zcat", stored], stdout=subprocess.PIPE) as zcat:
        assert zcat.stdout is not None
        for number, line in enumerate(zcat.stdout, 1):
            entry = json.loads(line)
            assert entry["sequence"] == number
            content = content_of(entry)
            assert len(content) <= PARTIAL_BYTES
            last = [*last[-1:], (content, entry.get("partial", False))]
            assert number == 1 or last[0][1] or content == b"next", "a piece before the end is partial"
    assert zcat.returncode == 0
    assert [partial for _, partial in last] == [False, False]
    assert last[1][0] == b"next"


def content_of(entry: dict[str, Any]) -> bytes:
    """The bytes of an entry, without its line end."""
    if "content_b64" in entry and entry["content_b64"] is not None:
        return base64.b64decode(entry["content_b64"])
    return str(entry["content"]).encode()


FORGED: Final = b'{"timestamp":1,"sequence":1,"stream":"stderr","content":"forged"}'
AWKWARD_LINES: Final[dict[str, bytes]] = {
    "empty": b"",
    "nul": b"a\0b\0",
    "carriage return": b"10%\r20%\r100%",
    "crlf": b"windows\r",
    "invalid UTF-8": b"\xff\xfe\x80 \xc3(",
    "cut off in a character": b"\xe2\x82",
    "overlong": b"\xc0\xaf \xe0\x80\xaf",
    "surrogates (CESU-8)": b"\xed\xa0\xbd\xed\xb8\x80",
    "beyond unicode": b"\xf4\x90\x80\x80",
    "line and paragraph separator": "a\u2028b\u2029c".encode(),
    "next line": "a\u0085b".encode(),
    "byte order mark": b"\xef\xbb\xbfa",
    "noncharacters": "\ufffe\uffff\U0010ffff".encode(),
    "bidirectional override": "a\u202eb".encode(),
    "clipboard": b"\x1b]52;c;AAAA\x07",
    "title": b"\x1b]0;owned\x1b\\",
    "clear screen": b"\x1b[2J\x1b[H\x9b2J",
    "our stored line": FORGED,
    "our record": b"JLR1\x02\x01\x00\x00" + bytes(28),
    "our command": b"JLC1\x01\x00\x09\x00",
    "gzip header": b"\x1f\x8b\x08\x04" + bytes(60),
    "quotes": b'\\"\\\\u0000 \\n "',
    "form feed and vertical tab": b"a\x0cb\x0bc\x1cd\x1de",
    "delete": b"\x7f",
    "64 KiB - 1": b"x" * 65535,
    "64 KiB": b"y" * 65536,
    "64 KiB + 1": b"z" * 65537,
    "64 KiB of invalid UTF-8": b"\xff" * 65536,
    "a character over the edge of a piece": b"w" * 65535 + "é".encode() + b"w",
    "1 MiB of one byte": b"\0" * MIB,
    "last": b"last",
}
AWKWARD: Final[dict[str, bytes]] = {
    "lines": b"".join(line + b"\n" for line in AWKWARD_LINES.values()),
    "no end": b"\n".join(AWKWARD_LINES.values()),
    "only newlines": b"\n" * 100_000,
    "one byte": b"\n",
    "one byte without end": b"\x00",
}


def test_the_lines_are_awkward() -> None:
    """Positive control: some are no UTF-8, and others are split by who takes other characters for line ends."""
    assert AWKWARD["lines"].decode("utf-8", "replace").encode() != AWKWARD["lines"]
    assert len(AWKWARD["lines"].decode("utf-8", "replace").splitlines()) > AWKWARD["lines"].count(b"\n")


@pytest.mark.threat("C19")
@pytest.mark.threat("C21")
@pytest.mark.requirement("T.3")
@pytest.mark.parametrize("name", AWKWARD)
def test_lines_of_every_awkward_kind(node: Node, tmp_path: Path, name: str) -> None:
    """On both streams; live, stored, as JSON and by `zcat | jq`: the bytes that the job wrote."""
    written = AWKWARD[name]
    (tmp_path / "awkward").write_bytes(written)
    script = "cat /work/awkward; cat /work/awkward >&2"
    done = node.rnx("job", "run", "--upload", str(tmp_path / "awkward"), "--", "sh", "-c", script)
    assert done.returncode == 0
    assert done.stdout == written
    assert done.stderr == written
    job = node.jobs("--limit", "1")[0]["id"]
    wait_until_stored(node, [job])
    for stream in ("stdout", "stderr"):
        assert node.ok("job", "log", job, "--no-follow", "--stream", stream) == written
        assert written_by(node.entries(job, "--stream", stream)) == written
        stored = node.base / "logs" / job / f"{stream}.log.gz"
        shown = run_program(
            "jq", "-c", "{content, content_b64, partial, stream}", data=run_program("zcat", str(stored))
        )
        entries = [json.loads(line) for line in shown.split(b"\n") if line]
        assert written_by(entries) == written
        assert {entry["stream"] for entry in entries} == {stream}
    sequences = [entry["sequence"] for entry in node.entries(job)]
    assert sequences == list(range(1, len(sequences) + 1))
    assert_whole(node, job)


def written_by(entries: list[dict[str, Any]]) -> bytes:
    """The bytes that these entries stand for."""
    return b"".join(content_of(entry) + (b"" if entry.get("partial") else b"\n") for entry in entries)


@pytest.mark.threat("C20")
def test_awkward_lines_on_a_terminal(node: Node, tmp_path: Path) -> None:
    """Live and stored: nothing that a terminal obeys, and every dangerous character is shown."""
    lines = [line for line in AWKWARD_LINES.values() if len(line) < 1000]
    (tmp_path / "awkward").write_bytes(b"\n".join(lines) + b"\n")
    job = node.detached("--upload", str(tmp_path / "awkward"), "--", "cat", "/work/awkward")
    for arguments in (("job", "log", job), ("job", "log", job, "--no-follow"), ("job", "log", job, "--timestamps")):
        shown = on_a_terminal(*node.command(*arguments)).replace(b"\r\n", b"\n")
        text = shown.decode("utf-8")
        assert {each for each in text if not each.isprintable()} <= HARMLESS, arguments
        for told in (r"\x1b]52;c;AAAA\x07", r"\x1b[2J\x1b[H\x9b2J", r"10%\x0d20%", r"a\u202eb", r"a\u2028b", r"a\x85b"):
            assert told in text, arguments
    assert b"\x1b]52;c;AAAA\x07" in on_a_terminal(*node.command("job", "log", job, "--raw")), "positive control"


HARMLESS: Final = set("\n\t\ufeff\ufffe\uffff\U0010ffff")
"""Not printable, and nothing that a terminal obeys."""


def on_a_terminal(*command: str) -> bytes:
    """What a program writes to its terminal."""
    leader, follower = pty.openpty()
    process = subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=follower, stderr=follower)
    os.close(follower)
    shown = bytearray()
    try:
        while data := os.read(leader, 65536):
            shown += data
    except OSError:  # EIO: the other side is closed, pty(7)
        pass
    finally:
        os.close(leader)
        process.wait(timeout=60)
    return bytes(shown)


@pytest.mark.threat("C22")
@pytest.mark.threat("C17")
def test_a_search_through_a_bomb(node: Node) -> None:
    """Searches in hundreds of megabytes that are stored in one cost bounded memory, and others are served meanwhile."""
    quiet = node.detached("--", "seq", "1000")
    bomb = node.detached("--", "sh", "-c", f"yes $(printf '%0999d' 0) | head -c {BOMB_BYTES}; echo; echo needle")
    node.ok("job", "wait", bomb, timeout_s=100)
    wait_until_stored(node, [bomb, quiet], timeout_s=60)
    stored = sum(path.stat().st_size for path in (node.base / "logs" / bomb).iterdir())
    assert stored < BOMB_BYTES // 20, "it is a bomb"
    services = Services(node)

    def answered_beside_searches() -> bool:
        searches = [
            node.background("job", "log", bomb, "--no-follow", "--filter", f"needle{number or ''}")
            for number in range(4)
        ]
        try:
            assert node.ok("job", "log", quiet, "--no-follow").count(b"\n") == 1000
            beside = any(search.poll() is None for search in searches)
            found = [search.communicate(timeout=100) for search in searches]
            assert found == [(b"needle\n", b""), *[(b"", b"")] * 3]
        finally:
            for search in searches:
                end(search)
        return beside

    wait_for(answered_beside_searches, timeout_s=60, what="a log to be read while others are searched")
    services.assert_same()
    services.assert_bounded(SERVICE_GROWTH_MAX)
    node.ok("job", "delete", bomb)
    assert_nothing_of_jobs_left(node)
