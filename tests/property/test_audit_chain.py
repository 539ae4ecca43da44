"""The audit log's chain against everything that can be done to its lines, and to the disk below them."""

import shutil
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from cli.joblet.auditverify import Head, Report, verify_audit
from common.audit import AuditFile
from common.auditchain import FILE_NAME
from common.config.settings import AuditLog
from tests.audit_lines import Disk, Line, lines, names, write, writing

COUNT = 14
BOUND = 1100  # some lines a file, and several files


@pytest.fixture(scope="module")
def log(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A log of several files and two processes, with a torn line that is told."""
    directory = tmp_path_factory.mktemp("audit")
    write(directory, COUNT // 2, bytes_max=BOUND)
    current = directory / FILE_NAME
    current.write_bytes(current.read_bytes()[:-40])
    write(directory, COUNT // 2, bytes_max=BOUND)
    assert len(names(directory)) >= 4
    assert verify_audit(directory, "api").findings == []
    return directory


@pytest.fixture(scope="module")
def head(log: Path) -> Head:
    """What an operator keeps."""
    report = verify_audit(log, "api")
    return Head(report.last_number, report.head)


@contextmanager
def changed(log: Path, change: Callable[[Path], None]) -> Iterator[Path]:
    """A copy of the log with a change made to it."""
    with tempfile.TemporaryDirectory() as parent:
        copy = Path(parent) / "audit"
        shutil.copytree(log, copy)
        change(copy)
        yield copy


def found(log: Path, head: Head, change: Callable[[Path], None]) -> Report:
    """What verify says of the changed copy."""
    with changed(log, change) as copy:
        return verify_audit(copy, "api", head, sleep=lambda _: None)


@st.composite
def places(draw: st.DrawFn) -> tuple[float, float]:
    """A file and a place in it, as fractions."""
    return draw(st.floats(0, 1, exclude_max=True)), draw(st.floats(0, 1, exclude_max=True))


def pick(directory: Path, place: float) -> Path:
    """The file there."""
    return directory / names(directory)[int(place * len(names(directory)))]


CHECKS = settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])


@CHECKS
@given(place=places(), byte=st.integers(0, 255))
def test_a_changed_byte_is_found(log: Path, head: Head, place: tuple[float, float], byte: int) -> None:
    """Any byte of any line, newlines and the last line included."""

    def change(directory: Path) -> None:
        path = pick(directory, place[0])
        data = bytearray(path.read_bytes())
        at = int(place[1] * len(data))
        data[at] = byte if data[at] != byte else byte ^ 1
        path.write_bytes(data)

    assert found(log, head, change).findings


@CHECKS
@given(place=places(), count=st.integers(1, 400), extra=st.binary(max_size=4))
def test_bytes_cut_out_or_put_in_are_found(
    log: Path, head: Head, place: tuple[float, float], count: int, extra: bytes
) -> None:
    """A piece of any length, over lines and up to the end of a file; something else in its place or not."""

    def change(directory: Path) -> None:
        path = pick(directory, place[0])
        data = path.read_bytes()
        at = int(place[1] * len(data))
        new = data[:at] + extra + data[at + count :]
        path.write_bytes(new if new != data else data[:at] + data[at + 1 :])

    assert found(log, head, change).findings


@CHECKS
@given(place=places(), other=st.integers(0, 30), how=st.sampled_from(["remove", "duplicate", "swap", "insert", "move"]))
def test_a_line_removed_duplicated_swapped_moved_or_inserted_is_found(
    log: Path, head: Head, place: tuple[float, float], other: int, how: str
) -> None:
    """Whole lines, within a file and from file to file."""

    def change(directory: Path) -> None:
        path = pick(directory, place[0])
        own = path.read_bytes().splitlines(keepends=True)
        at = int(place[1] * len(own))
        match how:
            case "remove":
                del own[at]
            case "duplicate":
                own.insert(at, own[at])
            case "swap":
                second = other % len(own)
                second = second if second != at else (at + 1) % len(own)
                if second == at:
                    own *= 2  # a file of one line
                own[at], own[second] = own[second], own[at]
            case "insert":
                own.insert(at, own[at].replace(b'"ann"', b'"bob"').replace(b'"kind":"torn"', b'"kind":"tern"'))
            case "move":
                to = next(directory / name for name in names(directory) if name != path.name)
                to.write_bytes(to.read_bytes() + own.pop(at))
        path.write_bytes(b"".join(own))

    assert found(log, head, change).findings


def test_a_file_that_is_gone_is_found_and_one_that_was_rotated_away_is_told(log: Path, head: Head) -> None:
    """In the middle: which numbers are missing. At the beginning: fine, and told. At the end: by the kept head."""
    all_names = names(log)
    for name in all_names[1:-1]:
        (finding,) = found(log, head, lambda copy, name=name: (copy / name).unlink()).findings  # type: ignore[misc]
        assert "is missing before it" in finding
    report = found(log, head, lambda copy: (copy / all_names[0]).unlink())
    assert report.findings == []
    assert report.first_number > 1
    (finding,) = found(log, head, lambda copy: (copy / FILE_NAME).unlink()).findings
    assert f"line number {head.number} is not there" in finding


def test_a_log_that_is_cut_at_its_end_is_found_by_its_head_alone(log: Path, head: Head) -> None:
    """By the number alone, by the hash alone; without either nobody can know."""

    def cut(directory: Path) -> None:
        current = directory / FILE_NAME
        current.write_bytes(b"".join(current.read_bytes().splitlines(keepends=True)[:-1]))

    assert found(log, Head(), cut).findings == []
    assert found(log, Head(number=head.number), cut).findings
    assert found(log, Head(digest=head.digest), cut).findings
    assert found(log, head, lambda _: None).findings == []


def test_a_head_is_found_again_when_the_log_has_grown(log: Path, head: Head) -> None:
    """It is a line like any other then; a log that was written anew has another one there."""
    assert found(log, head, lambda copy: write(copy, 5, bytes_max=BOUND)).findings == []

    def anew(directory: Path) -> None:
        for name in names(directory):
            (directory / name).unlink()
        write(directory, COUNT + 10, bytes_max=BOUND)

    (finding,) = found(log, head, anew).findings
    assert "written anew" in finding


def test_a_head_that_was_rotated_away_is_no_finding(log: Path) -> None:
    """Its number says so."""
    first = lines(log)[0]
    report = found(log, Head(1, "0" * 64), lambda copy: (copy / names(copy)[0]).unlink())
    assert first["number"] == 1
    assert report.findings == []
    assert any("rotated away" in note for note in report.notes)


@settings(max_examples=200, deadline=None)
@given(st.lists(st.tuples(st.integers(0, 700), st.integers(1, 4), st.booleans()), min_size=1, max_size=8))
def test_whatever_the_disk_does_the_chain_is_whole_and_the_count_is_right(
    steps: list[tuple[int, int, bool]],
) -> None:
    """Room runs out at any byte, comes back, processes end and begin: every line is there, or in a `missing` one."""
    with tempfile.TemporaryDirectory() as parent:
        directory = Path(parent)
        disk = Disk()
        bound = AuditLog(file_bytes_max=BOUND, files_kept=1000)
        audit = AuditFile(directory, bound, write=disk.write)
        recorded = 0
        for room, count, restarts in steps:
            disk.room_bytes = room
            for _ in range(count):
                recorded += 1
                audit.record(Line(object=f"line-{recorded}"))
            if restarts:
                disk.room_bytes = 2**40  # what is missing is told at the end of a process that is not killed
                audit.close()
                audit = AuditFile(directory, bound, write=disk.write)
        disk.room_bytes = 2**40
        audit.close()
        report = verify_audit(directory, "api")
        assert report.findings == []
        there = [line["object"] for line in lines(directory) if line.get("object")]
        assert there == sorted(there, key=lambda text: int(text.removeprefix("line-")))
        assert len(set(there)) == len(there)
        assert len(there) + report.missing == recorded
        with writing(directory) as again:
            again.record(Line(object="after"))
        assert verify_audit(directory, "api").findings == []
