"""`joblet verify`: what is whole passes, and each kind of damage is found and named."""

import contextlib
import gzip
import json
from pathlib import Path

import pytest

from cli.joblet.main import run
from cli.joblet.storedlog import FINDINGS_MAX, INFLATED_AT_ONCE_MAX, DamagedFile, read_lines, verify_job

JOB = "6fa459ea-ee8a-4ca4-894e-db77e160355e"


def line(sequence: int, stream: str = "stdout", **fields: object) -> bytes:
    """One stored line."""
    if not fields:
        fields = {"content": f"line {sequence}"}
    return json.dumps({"timestamp": 1, "sequence": sequence, "stream": stream, **fields}).encode() + b"\n"


def member(*lines: bytes) -> bytes:
    """One gzip member."""
    return gzip.compress(b"".join(lines), 1)


@pytest.fixture
def job(tmp_path: Path) -> Path:
    """A job's directory below a base directory: 4 lines on stdout, 2 on stderr, and an entry in base64."""
    directory = tmp_path / "logs" / JOB
    directory.mkdir(parents=True)
    out = member(line(1), line(2)) + member() + member(line(4), line(6, content_b64="/w==", partial=True))
    (directory / "stdout.log.gz").write_bytes(out)
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


def test_a_gap_line_stands_for_the_entries_that_it_counts(job: Path) -> None:
    """Output that was dropped and counted is no finding, also where nobody knows of which stream it was."""
    with (job / "stdout.log.gz").open("ab") as file:
        file.write(member(line(7, "none", gap=3, gap_bytes=100, reason="journal_full"), line(10)))
    report = verify_job(job)
    assert report.findings == []
    assert (report.lines, report.gap_entries, report.last_sequence) == (7, 3, 10)


@pytest.mark.threat("F12")
def test_a_file_cut_at_any_byte_is_found_and_its_whole_lines_are_read(job: Path) -> None:
    """But for cuts between members, which leave a whole file."""
    file = job / "stdout.log.gz"
    content = file.read_bytes()
    all_lines = list(read_lines(file))
    between = {0, len(member(line(1), line(2))), len(member(line(1), line(2)) + member()), len(content)}
    for size in range(len(content)):
        file.write_bytes(content[:size])
        findings = verify_job(job).findings
        cut_off = [finding for finding in findings if "stdout.log.gz" in finding]
        assert bool(cut_off) == (size not in between), (size, findings)
        read: list[bytes] = []
        with contextlib.suppress(DamagedFile):  # any other exception would be a fault of ours
            read.extend(read_lines(file))
        assert read == all_lines[: len(read)]


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
def test_a_bomb_is_inflated_piece_by_piece(tmp_path: Path) -> None:
    """64 MiB of zeros in 64 KiB of gzip: refused as one endless line, after a bounded part of it."""
    directory = tmp_path / JOB
    directory.mkdir()
    (directory / "stdout.log.gz").write_bytes(gzip.compress(bytes(64 * INFLATED_AT_ONCE_MAX), 9))
    assert any("a line of more than" in finding for finding in verify_job(directory).findings)


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
