"""The audit file: chained lines, over rotation, restarts, torn lines and full disks."""

import contextlib
import hashlib
import json
import os
import re
import threading
from collections.abc import Callable, Iterator
from itertools import pairwise
from pathlib import Path

import pytest

from cli.joblet.auditverify import verify_audit
from common.auditchain import FILE_NAME, GENESIS, LINE_BYTES_MAX
from tests.audit_lines import Disk, Line, lines, names, text, write, writing
from tests.waiting import wait_for


def findings(directory: Path) -> list[str]:
    """What verify finds."""
    return verify_audit(directory, "api").findings


def test_each_line_names_the_hash_of_the_one_before(tmp_path: Path) -> None:
    """Numbers from 1; `previous` is SHA-256 of the exact bytes; the first has the genesis value; mode 0600."""
    write(tmp_path, 3)
    raw = text(tmp_path).splitlines()
    assert [json.loads(line)["number"] for line in raw] == [1, 2, 3]
    assert json.loads(raw[0])["previous"] == GENESIS
    for before, line in pairwise(raw):
        assert json.loads(line)["previous"] == hashlib.sha256(before).hexdigest()
    assert raw[0].startswith(b'{"number":1,"previous":"')
    assert (tmp_path / FILE_NAME).stat().st_mode & 0o777 == 0o600
    assert findings(tmp_path) == []


def test_a_restart_and_a_rotation_go_on_with_the_chain(tmp_path: Path) -> None:
    """Four processes and small files: one chain, no hole, each file within its bound."""
    for _ in range(4):
        write(tmp_path, 10, bytes_max=1000, kept=100)
    assert [line["number"] for line in lines(tmp_path)] == list(range(1, 41))
    assert len(names(tmp_path)) > 5
    assert all((tmp_path / name).stat().st_size <= 1000 for name in names(tmp_path))
    assert findings(tmp_path) == []


def test_only_so_many_files_are_kept(tmp_path: Path) -> None:
    """The oldest go, also those that a lower setting leaves over; what is left is one chain."""
    write(tmp_path, 40, bytes_max=600, kept=9)
    assert len(names(tmp_path)) == 10
    write(tmp_path, 10, bytes_max=600, kept=3)
    assert names(tmp_path) == [f"{FILE_NAME}.{number}" for number in (3, 2, 1)] + [FILE_NAME]
    report = verify_audit(tmp_path, "api")
    assert (report.findings, report.last_number) == ([], 50)
    assert report.first_number > 1


def test_a_rotation_that_was_cut_off_is_gone_on_with(tmp_path: Path) -> None:
    """Killed after some of the renames: a number has no file; the chain goes on behind what is there."""
    write(tmp_path, 12, bytes_max=600, kept=9)
    for number in sorted((int(name.rpartition(".")[2]) for name in names(tmp_path)[:-1]), reverse=True):
        (tmp_path / f"{FILE_NAME}.{number}").rename(tmp_path / f"{FILE_NAME}.{number + 1}")
    assert f"{FILE_NAME}.1" not in names(tmp_path)
    write(tmp_path, 3, bytes_max=600, kept=20)
    assert [line["number"] for line in lines(tmp_path)] == list(range(1, 16))
    assert findings(tmp_path) == []


def test_the_newest_file_may_be_an_older_one(tmp_path: Path) -> None:
    """Killed between the rename and the new file: the first line of the new one chains to the last of the old one."""
    write(tmp_path, 5)
    (tmp_path / FILE_NAME).rename(tmp_path / f"{FILE_NAME}.1")
    write(tmp_path, 2)
    assert [line["number"] for line in lines(tmp_path)] == [1, 2, 3, 4, 5, 6, 7]
    assert findings(tmp_path) == []


@pytest.mark.parametrize("cut", [1, 2, 50, 150, 10**6])
def test_a_torn_line_is_kept_and_told(tmp_path: Path, cut: int) -> None:
    """What a crash left of a line stays as it is; the chain goes on with a line that tells of it."""
    write(tmp_path, 3)
    whole = text(tmp_path)
    last = whole.splitlines(keepends=True)[-1]
    left = whole[: len(whole) - min(cut, len(last) - 1)]
    (tmp_path / FILE_NAME).write_bytes(left)
    assert any("cut off" in finding for finding in findings(tmp_path))
    write(tmp_path, 2)
    assert text(tmp_path).startswith(left + b"\n")
    found = lines(tmp_path)
    report = verify_audit(tmp_path, "api")
    assert report.findings == []
    if cut == 1:  # only its newline was missing: it is a whole line
        assert [line["number"] for line in found] == [1, 2, 3, 4, 5]
        assert report.torn == 0
    else:
        assert [(line["number"], line.get("kind")) for line in found][2] == (3, "torn")
        assert [line["number"] for line in found] == [1, 2, 3, 4, 5]
        assert report.torn == 1


def test_text_that_was_no_log_is_told_as_torn(tmp_path: Path) -> None:
    """A file with something else in it is gone on with, and what is in it is bound by the chain."""
    (tmp_path / FILE_NAME).write_bytes(b"{}\nhello\n")
    write(tmp_path, 1)
    assert [line.get("kind") for line in lines(tmp_path)[1:]] == ["torn", None]
    assert findings(tmp_path) == []
    (tmp_path / FILE_NAME).write_bytes(text(tmp_path).replace(b"hello", b"hallo"))
    assert findings(tmp_path) != []


def test_a_large_file_without_a_line_is_set_aside(tmp_path: Path) -> None:
    """Its end is looked at, no more than a mebibyte; a new log begins in a new file, and verify says so."""
    (tmp_path / FILE_NAME).write_bytes(b"x" * 3 * 2**20)
    write(tmp_path, 2)
    assert [line["number"] for line in lines(tmp_path)] == [1, 2]
    assert (tmp_path / f"{FILE_NAME}.1").stat().st_size == 3 * 2**20
    assert len(findings(tmp_path)) >= 1


def test_a_full_disk_leaves_a_line_that_says_how_many_are_missing(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """The lines go to the service's log; when there is room again the log tells how many, and between which times."""
    disk = Disk()
    with writing(tmp_path, disk=disk) as audit:
        audit.record(Line(object="kept"))
        disk.room_bytes = 100
        for number in range(5):
            audit.record(Line(object=f"lost-{number}"))
        disk.room_bytes = 2**40
        audit.record(Line(object="later"))
    logged = capsys.readouterr().out
    assert all(f"lost-{number}" in logged for number in range(5))
    first, torn, missing, later = lines(tmp_path)
    assert (first["object"], later["object"]) == ("kept", "later")
    assert (torn["kind"], torn["torn_bytes"]) == ("torn", 100)
    assert (missing["kind"], missing["lines"]) == ("missing", 5)
    assert first["time"] < missing["first"] <= missing["last"] <= missing["time"]
    assert "5 lines are missing" in missing["why"]
    report = verify_audit(tmp_path, "api")
    assert (report.findings, report.missing) == ([], 5)


def test_what_is_missing_at_the_end_is_told_when_it_can_be(tmp_path: Path) -> None:
    """A service that ends after a full disk tells of the gap, without another call."""
    disk = Disk()
    with writing(tmp_path, disk=disk) as audit:
        audit.record(Line())
        disk.room_bytes = 0
        audit.record(Line())
        disk.room_bytes = 2**40
    assert [line.get("lines") for line in lines(tmp_path)] == [None, 1]


def link_to(target: Path) -> Callable[[Path], None]:
    """Makes a symbolic link to `target`."""
    return lambda path: path.symlink_to(target)


def test_what_is_no_file_of_ours_is_not_written(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """A symbolic link, a FIFO, or a file that another process writes: the line goes to the service's log."""
    target = tmp_path / "target"
    target.write_text("")
    for number, make in enumerate((link_to(target), os.mkfifo)):
        directory = tmp_path / str(number)
        directory.mkdir()
        make(directory / FILE_NAME)
        write(directory, 1)
        assert "audit line not written" in capsys.readouterr().out
    assert target.read_text() == ""
    shared = tmp_path / "shared"
    shared.mkdir()
    with writing(shared) as audit:
        audit.record(Line(object="first"))
        write(shared, 1)
        assert "audit line not written" in capsys.readouterr().out
        audit.record(Line(object="second"))
    assert [line["object"] for line in lines(shared)] == ["first", "second"]


def test_a_line_that_is_too_long_is_told_as_missing(tmp_path: Path) -> None:
    """It would not be found again from the end of the file."""
    with writing(tmp_path) as audit:
        audit.record(Line(why="x" * LINE_BYTES_MAX))
        audit.record(Line(object="fine"))
    missing, fine = lines(tmp_path)
    assert (missing["kind"], missing["lines"], fine["object"]) == ("missing", 1, "fine")
    assert findings(tmp_path) == []


@pytest.mark.parametrize("before", [0, 3])
def test_a_line_that_was_never_tried_is_told_as_missing(tmp_path: Path, before: int) -> None:
    """It failed before its first byte: behind a line that was written well, or behind one that told of others."""
    disk = Disk()
    with writing(tmp_path, disk=disk) as audit:
        audit.record(Line(object="first"))
        disk.room_bytes = 0
        for _ in range(before):
            audit.record(Line())
        disk.room_bytes = 2**40
        audit.record(Line(object="good"))
        audit.record(Line(why="x" * LINE_BYTES_MAX))
        audit.record(Line(object="later"))
    told = [line["lines"] for line in lines(tmp_path) if line.get("kind") == "missing"]
    assert told == ([before, 1] if before else [1])
    assert findings(tmp_path) == []


def test_a_rotation_that_fails_costs_no_line_in_silence(tmp_path: Path) -> None:
    """What stands in the way is taken away later: the lines that were lost over it are told."""
    with writing(tmp_path, bytes_max=600, kept=1) as audit:
        audit.record(Line(object="good"))
        obstacle = tmp_path / f"{FILE_NAME}.1"
        obstacle.mkdir()
        for _ in range(2):
            audit.record(Line(object="lost", why="x" * 400))
        obstacle.rmdir()
        audit.record(Line(object="later"))
    assert [line["lines"] for line in lines(tmp_path) if line.get("kind") == "missing"] == [2]
    assert findings(tmp_path) == []


def test_a_log_that_is_removed_under_the_service_is_begun_anew(tmp_path: Path) -> None:
    """Within a second or so a new file is begun, with the next number: the hole shows."""
    with writing(tmp_path) as audit:
        audit.record(Line(object="gone"))
        (tmp_path / FILE_NAME).unlink()

        def written() -> bool:
            audit.record(Line(object="new"))
            return (tmp_path / FILE_NAME).exists()

        wait_for(written, what="a new file")
    found = lines(tmp_path)
    assert found[0]["number"] > 1
    assert findings(tmp_path) == []


def test_a_line_is_in_the_file_when_it_is_recorded(tmp_path: Path) -> None:
    """Nothing waits in the process for a close: a killed one leaves all that it recorded."""
    with writing(tmp_path) as audit:
        for number in range(1, 4):
            audit.record(Line())
            assert len(lines(tmp_path)) == number


def open_files() -> Iterator[str]:
    """What the descriptors of this process lead to."""
    for entry in Path("/proc/self/fd").iterdir():
        with contextlib.suppress(FileNotFoundError):  # of this very listing
            yield str(entry.readlink())


def test_nothing_of_the_writer_is_left(tmp_path: Path) -> None:
    """close() ends its thread and gives every descriptor back, also those of files that were rotated."""
    before = set(threading.enumerate())
    write(tmp_path, 50, bytes_max=1000, kept=2)
    # Its own only: what a test before has left to gRPC may end at this moment.
    assert [name for name in open_files() if name.startswith(str(tmp_path))] == []
    assert [thread for thread in set(threading.enumerate()) - before if thread.name == "audit-sync"] == []
    assert re.fullmatch(rb'(\{"number":[^\n]*\}\n)+', text(tmp_path))
