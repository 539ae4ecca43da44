"""`joblet verify --audit`: what it prints, where damage is, and the exit code."""

import json
import os
from pathlib import Path

import pytest

from cli.joblet.auditverify import FINDINGS_MAX, verify_audit
from cli.joblet.main import run
from common.auditchain import FILE_NAME, LINE_BYTES_MAX
from tests.audit_lines import Disk, Line, write, writing


@pytest.fixture
def base(tmp_path: Path) -> Path:
    """A base directory with the logs of both services."""
    directory = tmp_path / "audit"
    (directory / "persist").mkdir(parents=True)
    write(directory, 5)
    write(directory / "persist", 2)
    return tmp_path


def verify(base: Path, capsys: pytest.CaptureFixture[str], *arguments: str) -> tuple[int, str]:
    """Exit code and stdout."""
    capsys.readouterr()
    return run(["verify", "--audit", "--base-dir", str(base), *arguments]), capsys.readouterr().out


def test_a_whole_log(base: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Both sources with lines, files, first and last number and time, and the head; exit code 0."""
    code, out = verify(base, capsys)
    assert code == 0
    api, first, last, head, persist, *_ = out.splitlines()
    assert api == "api: 5 lines in 1 file: whole"
    assert first == "  first number 1 of 2026-01-02T03:04:05Z"
    assert last == "  last number 5 of 2026-01-02T03:04:05Z"
    assert head == f"  head {verify_audit(base / 'audit', 'api').head}"
    assert persist == "persist: 2 lines in 1 file: whole"
    assert verify(base, capsys, "--source", "persist")[1].startswith("persist: 2 lines")


def test_json(base: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """One object a source with stable keys."""
    code, out = verify(base, capsys, "--json")
    api, persist = map(json.loads, out.splitlines())
    assert (code, api["source"], persist["source"]) == (0, "api", "persist")
    assert list(api) == [
        *("source", "directory", "files", "lines", "first_number", "first_time", "last_number", "last_time"),
        *("head", "torn", "missing", "notes", "findings", "findings_untold"),
    ]
    assert (api["lines"], api["files"], api["findings"]) == (5, [FILE_NAME], [])


def test_damage_is_named_with_file_and_line(base: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """What is wrong and where; exit code 1. The other source is checked all the same."""
    path = base / "audit" / FILE_NAME
    whole = path.read_bytes()
    path.write_bytes(whole.replace(b'"object":"3"', b'"object":"8"'))
    code, out = verify(base, capsys)
    assert code == 1
    assert f"  {FILE_NAME}:4: the line before it, number 3, was changed: it has another hash" in out.splitlines()
    assert "persist: 2 lines in 1 file: whole" in out.splitlines()
    own = whole.splitlines(keepends=True)
    for changed, told in (
        (own[:1] + own[2:], ":2: number 2 is missing before it"),
        (own[:1] + own[4:], ":2: number 2 to 4 is missing before it"),
        ([*own, own[2]], ":6: number 3 stands behind 5"),
        ([own[0], b"hello\n", *own[1:]], ":2: this is no line of the log"),
        (own[1:], ":1: the lines before it are missing"),
        ([*own, own[0]], ":6: this line was the first of a file"),
        ([*own[:-1], own[-1][:-30]], ":5: the last line has no end"),
    ):
        path.write_bytes(b"".join(changed))
        code, out = verify(base, capsys)
        assert code == 1
        assert f"{FILE_NAME}{told}" in out


def test_the_head_that_was_printed_finds_a_log_that_was_cut(base: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """By hash, by number, and of the other service; a head is fine when the log has grown."""
    head = verify_audit(base / "audit", "api").head
    kept = ("--head", head, "--head-number", "5")
    assert verify(base, capsys, *kept)[0] == 0
    write(base / "audit", 3)
    assert verify(base, capsys, *kept)[0] == 0
    path = base / "audit" / FILE_NAME
    path.write_bytes(b"".join(path.read_bytes().splitlines(keepends=True)[:4]))
    assert verify(base, capsys)[0] == 0
    for some in (kept, kept[:2], kept[2:]):
        code, out = verify(base, capsys, *some)
        assert code == 1
        assert "cut off" in out
    write(base / "audit", 3)
    assert "has another hash: it was written anew" in verify(base, capsys, *kept)[1]
    persist = verify_audit(base / "audit" / "persist", "persist").head
    assert verify(base, capsys, "--source", "persist", "--head", persist)[0] == 0
    assert verify(base, capsys, "--source", "persist", "--head", head)[0] == 1


def test_what_the_log_tells_itself_is_a_note(base: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Torn and missing lines: exit code 0, 1 with --strict."""
    disk = Disk(room_bytes=50)
    with writing(base / "audit", disk=disk) as audit:
        audit.record(Line())
        disk.room_bytes = 2**40
    code, out = verify(base, capsys)
    assert code == 0
    assert f"  {FILE_NAME}:6: a torn line of 50 bytes, told by the next" in out.splitlines()
    assert f"  {FILE_NAME}:8: says that 1 lines could not be written" in out.splitlines()
    assert verify(base, capsys, "--strict")[0] == 1


def test_a_node_that_served_nobody_yet(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """No lines are whole; a head of something is missing; no directory is an error that says so."""
    assert run(["verify", "--audit", "--base-dir", str(tmp_path)]) == 3
    assert "no audit log at" in capsys.readouterr().err
    (tmp_path / "audit" / "persist").mkdir(parents=True)
    assert verify(tmp_path, capsys) == (0, "api: 0 lines in 0 files: whole\npersist: 0 lines in 0 files: whole\n")
    assert verify(tmp_path, capsys, "--head-number", "1")[0] == 1


def test_options_that_do_not_go_together(base: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Usage errors, one line."""
    for wrong in (
        ["verify", "--head", "0" * 64],
        ["verify", "--source", "api"],
        ["verify", "--audit", "6fa459ea"],
        ["verify", "--audit", "--head", "abc"],
        ["verify", "--audit", "--head-number", "0"],
    ):
        assert run([*wrong, "--base-dir", str(base)]) == 2
        assert capsys.readouterr().err.count("\n") == 1


def test_damage_of_any_size(base: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Megabytes without a newline, thousands of wrong lines: bounded memory and output, no control characters."""
    path = base / "audit" / FILE_NAME
    own = path.read_bytes().splitlines(keepends=True)
    path.write_bytes(own[0] + b"\x1b[2J" * 2**20 + b"\n" + b"".join(own[1:]))
    report = verify_audit(base / "audit", "api")
    assert (len(report.findings), report.lines) == (1, 5)
    path.write_bytes(b"".join([own[0], own[2]] * 500))
    code, out = verify(base, capsys)
    assert code == 1
    assert len(out.splitlines()) < FINDINGS_MAX + 10
    assert "more findings" in out
    path.write_bytes(own[0].replace(b"2026-01-02T03:04:05Z", b"\\u001b[2J\\u202e"))
    assert "\x1b" not in verify(base, capsys)[1]
    path.write_bytes(own[0] + b'{"number":2,"previous":"' + b"0" * 64 + b'","why":"' + b"x" * LINE_BYTES_MAX + b'"}\n')
    assert verify(base, capsys)[0] == 1


def test_a_line_that_is_being_written_is_waited_for(base: Path) -> None:
    """Its second half comes while verify waits: the log is whole."""
    path = base / "audit" / FILE_NAME
    whole = path.read_bytes()
    path.write_bytes(whole[:-20])
    turns = []

    def settle(seconds: float) -> None:
        turns.append(seconds)
        if len(turns) == 2:
            with path.open("ab") as stream:
                stream.write(whole[-20:])

    assert verify_audit(base / "audit", "api", sleep=settle).findings == []
    assert len(turns) == 2


def test_links_and_pipes_are_not_read(base: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Root does not read through a link, nor wait for a pipe, that the api's user put there."""
    path = base / "audit" / FILE_NAME
    path.rename(base / "elsewhere")
    path.symlink_to(base / "elsewhere")
    assert run(["verify", "--audit", "--base-dir", str(base)]) == 4
    assert "cannot be read" in capsys.readouterr().err
    path.unlink()
    os.mkfifo(path)
    assert run(["verify", "--audit", "--base-dir", str(base)]) == 4
    assert "cannot be read" in capsys.readouterr().err
