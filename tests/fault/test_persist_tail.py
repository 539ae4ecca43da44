"""A file whose end is torn or empty: what was before it is read, and what comes after is readable."""

from pathlib import Path

import pytest

from common.records import Stream
from tests.fault.test_persist_disk import JOB, log_file
from tests.unit.test_persist_journal import joined, make_store, output, query, run_program, write


@pytest.mark.threat("F12")
def test_the_last_member_cut_at_every_byte(tmp_path: Path) -> None:
    """Whatever is left of it, what was before is read, and what comes after is readable."""
    store = make_store(tmp_path)
    write(store, JOB, output(b"a\nb\n", 1))
    size = log_file(tmp_path).stat().st_size
    write(store, JOB, output(b"c\nd\n", 3))
    content = log_file(tmp_path).read_bytes()
    for end in range(size, len(content)):
        log_file(tmp_path).write_bytes(content[:end])
        again = make_store(tmp_path)
        assert joined(query(again, JOB), Stream.STDOUT) == b"a\nb\n"
        write(again, JOB, output(b"a\nb\n", 1), output(b"c\nd\ne\n", 3))
        assert joined(query(make_store(tmp_path), JOB), Stream.STDOUT) == b"a\nb\nc\nd\ne\n"


@pytest.mark.threat("F09")
def test_a_last_member_of_zeros_is_cut_off(tmp_path: Path) -> None:
    """After a power cut a file may have its length and not its data."""
    store = make_store(tmp_path)
    write(store, JOB, output(b"a\n", 1))
    size = log_file(tmp_path).stat().st_size
    write(store, JOB, output(b"b\n", 2))
    content = log_file(tmp_path).read_bytes()
    for kept in (size, size + 64):
        log_file(tmp_path).write_bytes(content[:kept] + b"\0" * (len(content) - kept))
        again = make_store(tmp_path)
        write(again, JOB, output(b"b\n", 2))
        assert joined(query(make_store(tmp_path), JOB), Stream.STDOUT) == b"a\nb\n"
        run_program("gzip", "-t", str(log_file(tmp_path)))
