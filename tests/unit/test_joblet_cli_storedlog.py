"""`joblet verify`: what is whole passes, and each kind of damage is found and named."""

import gzip
import json
import random
import struct
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from cli.joblet import storedlog
from cli.joblet.main import run
from cli.joblet.storedlog import FINDINGS_MAX, verify_job
from cli.joblet.storedmembers import SEARCHED_BYTES, Member, members
from common.identifiers import JobId
from tests.unit.test_persist_journal import make_store, random_journal, write

JOB = JobId("6fa459ea-ee8a-4ca4-894e-db77e160355e")


def line(sequence: int, stream: str = "stdout", **fields: object) -> bytes:
    """One stored line."""
    if not fields:
        fields = {"content": f"line {sequence}"}
    return json.dumps({"timestamp": 1, "sequence": sequence, "stream": stream, **fields}).encode() + b"\n"


def member(*lines: bytes, **said: int) -> bytes:
    """One gzip member as docs/storage-format.md says, written here once more; `said`: what its header says instead."""
    decoded: list[dict[str, Any]] = []
    for text in lines:
        try:
            decoded.append(json.loads(text))
        except (ValueError, RecursionError):
            continue
    sequences = [(one.get("sequence", 1), one.get("gap", 1)) for one in decoded] or [(1, 0)]
    times = [one["timestamp"] for one in decoded if "timestamp" in one] or [1]
    fields = {
        "inflated_bytes": len(b"".join(lines)),
        "lines": sum(count for _, count in sequences),
        "first_sequence": sequences[0][0],
        "last_sequence": sequences[-1][0] + sequences[-1][1] - 1,
        "first_time_ns": min(times),
        "last_time_ns": max(times),
    } | said
    deflater = zlib.compressobj(1, zlib.DEFLATED, -zlib.MAX_WBITS)
    text = b"".join(lines)
    deflated = deflater.compress(text) + deflater.flush()
    head = struct.pack("<4sIBBH2sH", b"\x1f\x8b\x08\x04", 0, 0, 255, 52, b"JL", 48)
    head += struct.pack("<IIIQQqq", 64 + len(deflated) + 8, *fields.values())
    return head + struct.pack("<I", zlib.crc32(head)) + deflated + struct.pack("<II", zlib.crc32(text), len(text))


def end_mark(last: int) -> bytes:
    """The job ended, and `last` was its last sequence."""
    return member(lines=0, first_sequence=last + 1, last_sequence=last)


def read_lines(path: Path) -> Iterator[bytes]:
    """Every line of the whole members of a file."""
    for part in members(path):
        if isinstance(part, Member):
            yield from part.text.splitlines()


@pytest.fixture
def job(tmp_path: Path) -> Path:
    """A job's directory below a base directory: 4 lines on stdout, 2 on stderr, and an entry in base64."""
    directory = tmp_path / "logs" / JOB
    directory.mkdir(parents=True)
    out = member(line(1), line(2)) + member(line(4), line(6, content_b64="/w==", partial=True))
    (directory / "stdout.log.gz").write_bytes(out + end_mark(6))
    (directory / "stderr.log.gz").write_bytes(member(line(3, "stderr"), line(5, "stderr")))
    return directory


@pytest.mark.threat("C20")
def test_findings_cannot_drive_the_terminal(job: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """A stored line may say anything about itself; text and JSON show it and do not obey it."""
    (job / "stdout.log.gz").write_bytes(member(line(1, "\x1b[2J\x9b31m\u202e")))
    for options in ([], ["--json"]):
        assert run(["verify", "--base-dir", str(job.parents[1]), *options]) == 1
        shown = capsys.readouterr().out
        assert r"[2J" in shown
        assert shown.replace("\n", "").isprintable()


@pytest.mark.threat("F11")
@pytest.mark.parametrize(
    "text",
    [
        b'{"timestamp":1,"sequence":1,"stream":"\xff"}\n',
        b'{"timestamp":1,"sequence":1,"else":' + b"[" * 100_000 + b"\n",
    ],
    ids=["not UTF-8", "deep"],
)
def test_a_line_that_no_decoder_can_take_is_a_finding(job: Path, text: bytes) -> None:
    """Its checksum holds all the same: somebody wrote it so. The lines behind it are looked at."""
    (job / "stdout.log.gz").write_bytes(member(text, line(1), lines=1) + member(line(2)))
    report = verify_job(job)
    assert [finding for finding in report.findings if finding.startswith("stdout.log.gz: line 1: ")]
    assert report.lines == 4, "lines 1 and 2 of stdout, two of stderr"


@pytest.mark.requirement("S0.10")
def test_whole_files_have_no_findings(job: Path) -> None:
    """Sequences count over both files; an empty member (the end mark) is fine; a missing file is an empty one."""
    report = verify_job(job)
    assert report.findings == []
    assert (report.lines, report.last_sequence) == (6, 6)
    (job / "stdout.log.gz").unlink()
    assert verify_job(job).findings == [
        "stderr: sequences 1 to 2 are missing",
        "stderr: sequences 4 to 4 are missing",
    ]


def test_the_files_of_persist_are_whole(tmp_path: Path) -> None:
    """Both follow one description: what the service writes, with gaps of any stream, has no findings here."""
    store = make_store(tmp_path, flush_bytes=4096)
    encoded, _ = random_journal(random.Random(5), count=200)  # noqa: S311  # no secret
    write(store, JOB, *encoded[:50], *encoded[60:])
    (directory,) = [path.parent for path in tmp_path.rglob("stdout.log.gz")]
    report = verify_job(directory)
    assert report.findings == []
    assert report.lines > 200
    assert {gap.reason for gap in report.gaps} == {"never_received"}
    assert report.gap_entries == sum(gap.count for gap in report.gaps)


def test_a_gap_line_stands_for_the_entries_that_it_counts(job: Path) -> None:
    """Output that was dropped and counted is no finding, and is told; of no stream it is in the file of stdout."""
    with (job / "stdout.log.gz").open("ab") as file:
        gap = line(7, "none", gap=3, gap_bytes=2048, reason="journal_full")
        file.write(member(gap, line(10), line(11, gap=1, reason="x\x1b[2J")))
    report = verify_job(job)
    assert report.findings == []
    assert (report.lines, report.gap_entries, report.last_sequence) == (7, 4, 11)
    assert [(gap.first, gap.last, gap.count, gap.bytes) for gap in report.gaps] == [(7, 9, 3, 2048), (11, 11, 1, 0)]


def test_gaps_stand_below_the_verdict_and_are_findings_if_one_wants(
    job: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """From, to, how many, bytes and why in words; exit code 1 with --strict only; JSON has the reason as stored."""
    base = str(job.parents[1])
    assert run(["verify", "--strict", "--base-dir", base]) == 0
    with (job / "stdout.log.gz").open("ab") as file:
        gap = line(7, "none", gap=3, gap_bytes=2048, reason="journal_full")
        file.write(member(gap, line(10, gap=1, reason="x\x1b[2J")))
    capsys.readouterr()
    assert run(["verify", "--base-dir", base]) == 0
    assert capsys.readouterr().out.splitlines() == [
        f"{JOB}: 6 lines, last sequence 10, 4 entries in gaps: whole",
        "  gap: entries 7 to 9 (3 entries, 2.0 KiB): dropped by the node: the job's journal was full",
        "  gap: entry 10 of stdout (1 entry): x\\x1b[2J",
    ]
    assert run(["verify", "--strict", "--base-dir", base]) == 1
    capsys.readouterr()
    assert run(["verify", "--json", "--base-dir", base]) == 0
    assert json.loads(capsys.readouterr().out)["gaps"][0] == {
        "first": 7,
        "last": 9,
        "count": 3,
        "stream": "",
        "bytes": 2048,
        "reason": "journal_full",
    }
    monkeypatch.setattr(storedlog, "GAPS_MAX", 1)
    assert run(["verify", "--base-dir", base]) == 0
    assert capsys.readouterr().out.splitlines()[-1] == "  and 1 more gaps"


@pytest.mark.threat("F12")
def test_a_file_cut_at_any_byte_is_found_and_its_whole_lines_are_read(job: Path) -> None:
    """But for cuts between members, which leave whole members: then the sequences are missing all the same."""
    file = job / "stdout.log.gz"
    content = file.read_bytes()
    all_lines = list(read_lines(file))
    first = len(member(line(1), line(2)))
    between = {0, first, len(content) - len(end_mark(6))}
    for size in range(len(content)):
        file.write_bytes(content[:size])
        findings = verify_job(job).findings
        cut_off = [finding for finding in findings if "stdout.log.gz: bytes" in finding]
        assert bool(cut_off) == (size not in between), (size, findings)
        assert bool(findings) == (size < len(content) - len(end_mark(6)) or bool(cut_off))
        read = list(read_lines(file))
        assert read == all_lines[: len(read)]


@pytest.mark.threat("F11")
def test_behind_damage_it_goes_on_and_tells_exactly_what_is_missing(job: Path) -> None:
    """The byte range, then the next member; every sequence of the damaged one is missing and no other."""
    file = job / "stdout.log.gz"
    pieces = [member(line(7), line(8)), member(*[line(n) for n in range(9, 200)]), member(line(200))]
    start = len(file.read_bytes())
    with file.open("ab") as appended:
        appended.write(b"".join(pieces) + end_mark(200))
    assert verify_job(job).findings == []
    whole = file.read_bytes()
    second, third = start + len(pieces[0]), start + len(pieces[0]) + len(pieces[1])
    for position in (second + 3, second + 20, second + 62, second + 90, third - 9, third - 1):
        damaged = bytearray(whole)
        damaged[position] ^= 0x55
        file.write_bytes(damaged)
        bytes_told, missing = verify_job(job).findings
        assert bytes_told.startswith(f"stdout.log.gz: bytes {second} to {third - 1}: "), position
        assert missing == "stdout: sequences 9 to 199 are missing"
    file.write_bytes(whole[: second + 80] + whole[second + 90 :])  # lost in the middle: later members begin earlier
    bytes_told, missing = verify_job(job).findings
    assert bytes_told.startswith(f"stdout.log.gz: bytes {second} to {third - 11}: ")
    assert missing == "stdout: sequences 9 to 199 are missing"
    file.write_bytes(whole[:second] + bytes(3 * SEARCHED_BYTES - 7) + whole[second:])
    (bytes_told,) = verify_job(job).findings
    assert bytes_told.startswith(f"stdout.log.gz: bytes {second} to {second + 3 * SEARCHED_BYTES - 8}: no header")
    file.write_bytes(whole[: third + 3] + end_mark(200))
    assert verify_job(job).findings[1] == "the job ended with sequence 200: sequences 200 to 200 are missing"


@pytest.mark.parametrize(
    ("said", "words"),
    [
        ({"lines": 3}, "its header says lines 3 (it is 2)"),
        ({"first_sequence": 6}, "its header says first sequence 6 (it is 7)"),
        ({"last_sequence": 9}, "its header says last sequence 9 (it is 8)"),
        ({"first_time_ns": 0}, "its header says first time 0 (it is 1)"),
        ({"last_time_ns": 2, "lines": 1}, "its header says lines 1 (it is 2), last time 2 (it is 1)"),
        ({"inflated_bytes": 5}, "holds something else than its header says"),
        ({"inflated_bytes": 2**31}, "no header of a member"),
    ],
)
def test_a_header_that_does_not_fit_its_content_is_found(job: Path, said: dict[str, int], words: str) -> None:
    """Queries hop by headers: one that is wrong hides lines that are there."""
    with (job / "stdout.log.gz").open("ab") as file:
        file.write(member(line(7), line(8), **said))
    assert any(words in finding for finding in verify_job(job).findings), verify_job(job).findings


def test_every_flipped_byte_of_the_content_is_found_or_changes_nothing(job: Path) -> None:
    """CRC-32 of each member guards what it holds."""
    file = job / "stdout.log.gz"
    content = file.read_bytes()
    whole = list(read_lines(file))
    for position in range(len(content)):
        damaged = bytearray(content)
        damaged[position] ^= 0xFF
        file.write_bytes(damaged)
        if not verify_job(job).findings:
            assert list(read_lines(file)) == whole, position  # a byte that gzip does not look at, such as its mtime


@pytest.mark.parametrize(
    ("added", "words"),
    [
        (line(6), "sequence 6 after 6"),
        (line(5), "sequence 5 after 6"),
        (line(9), "sequences 7 to 8 are missing"),
        (b"{not json}\n", "line 5"),
        (line(0), "line 5"),
        (line(7, "stderr"), "says stream 'stderr'"),
        (b'{"timestamp":1}\n', "sequence"),
        (b'{"timestamp":1,"sequence":7,"stream":"stdout","content":"no end"}', "no end"),
    ],
)
def test_each_kind_of_damage_is_named(job: Path, added: bytes, words: str) -> None:
    """Repeat, hole, broken JSON, wrong stream, missing end of line."""
    with (job / "stdout.log.gz").open("ab") as file:
        file.write(member(added))
    assert any(words in finding for finding in verify_job(job).findings), verify_job(job).findings


def test_the_same_sequence_in_both_files_is_a_repeat(job: Path) -> None:
    """Within a file order forbids it; over both, the merge finds it."""
    with (job / "stderr.log.gz").open("ab") as file:
        file.write(member(line(6, "stderr")))
    assert any("sequence 6 comes twice" in finding for finding in verify_job(job).findings)


@pytest.mark.threat("C22")
def test_a_bomb_is_not_inflated(tmp_path: Path) -> None:
    """64 MiB of zeros, by anyone's gzip or with a header that says less: a finding, after a bounded part of it."""
    directory = tmp_path / JOB
    directory.mkdir()
    zeros = bytes(64 * 2**20)
    (directory / "stdout.log.gz").write_bytes(gzip.compress(zeros, 9) + member(zeros, inflated_bytes=1000))
    no_header, too_much = verify_job(directory).findings
    assert "no header of a member begins there" in no_header
    assert "holds something else than its header says" in too_much


def test_findings_are_bounded(job: Path) -> None:
    """A file full of nonsense does not fill the screen."""
    with (job / "stdout.log.gz").open("ab") as file:
        file.write(member(*[b"x\n"] * 1000))
    assert len(verify_job(job).findings) == FINDINGS_MAX + 1


def test_the_command_tells_by_exit_code_and_takes_a_prefix(job: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """0 whole, 1 findings, 3 no such job, 2 malformed; --json gives one object a job."""
    base = str(job.parents[1])
    (job.parent / "not-a-job").mkdir()
    assert run(["verify", "--base-dir", base]) == 0
    assert capsys.readouterr().out == f"{JOB}: 6 lines, last sequence 6: whole\n"
    assert run(["verify", "--base-dir", base, "--json", JOB[:8]]) == 0
    assert json.loads(capsys.readouterr().out)["lines"] == 6
    assert run(["verify", "--base-dir", base, "00000000"]) == 3
    assert run(["verify", "--base-dir", base, "../../etc"]) == 2
    (job / "stderr.log.gz").unlink()
    assert run(["verify", "--base-dir", base]) == 1
    assert run(["verify", "--base-dir", str(job / "none")]) == 3
