"""What rnx and the others do when stdin, stdout or stderr is closed, full, or of an encoding that lacks a character."""

import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from proto.joblet.v1 import job_pb2
from tests.contract.rnx_fake_node import REPOSITORY, FakeNode, Outcome, environment, fake_node
from tests.contract.rnx_fake_services import chunk

ID = "00000001-0000-4000-8000-000000000000"
FULL = "cannot write the output: No space left on device\n"
CLOSED = "cannot write the output: Bad file descriptor\n"


@pytest.fixture
def node(tmp_path: Path) -> Iterator[FakeNode]:
    """A node of this test alone, with one job."""
    with fake_node(tmp_path) as served:
        served.jobs.add(1, state=job_pb2.COMPLETED, spec=job_pb2.JobSpec(command="echo", args=["é漢"]))
        served.jobs.chunks = [chunk(1, b"begun\n")]
        yield served


def outcome(node: FakeNode, redirections: str, *words: str, program: str = "rnx", **variables: str) -> Outcome:
    """The outcome of a program with its streams as a shell was told."""
    process = subprocess.run(
        ["sh", "-c", f'exec "$@" {redirections}', "sh", *node.command(*words, program=program)],
        cwd=REPOSITORY,
        env=environment() | variables,
        capture_output=True,
        timeout=30,
        check=False,
    )
    return Outcome(process.returncode, process.stdout, process.stderr.decode())


@pytest.mark.parametrize(
    "words", [("job", "list"), ("job", "list", "--json"), ("nodes",), ("--help",), ("job", "log", ID)]
)
@pytest.mark.parametrize(("redirection", "told"), [(">/dev/full", FULL), (">&-", CLOSED)])
def test_output_that_cannot_be_written_is_no_defect(
    node: FakeNode, words: tuple[str, ...], redirection: str, told: str
) -> None:
    """A full disk and a closed stdout are told in a line; the exit code says that what was asked for did not come."""
    assert outcome(node, redirection, *words) == (1, b"", f"rnx: {told}")


@pytest.mark.parametrize(("redirection", "told"), [(">/dev/full", FULL), (">&-", CLOSED)])
def test_a_run_whose_output_cannot_be_written_ends_its_job(node: FakeNode, redirection: str, told: str) -> None:
    """As when its reader goes; and nothing that was meant for stdout goes to the connection instead."""
    found = outcome(node, redirection, "run", "x")
    assert (found.code, found.out) == (1, b"")
    left, last = found.err.splitlines(keepends=True)
    assert "go on with `rnx job log 00000002-0000-4000-8000-000000000000 --from-seq 1`" in left
    assert last == f"rnx: {told}"
    assert len(node.jobs.of(job_pb2.StopJobRequest)) == 1


@pytest.mark.parametrize("redirection", ["2>/dev/full", "2>&-"])
def test_without_a_stderr_the_exit_code_is_the_same(node: FakeNode, redirection: str) -> None:
    """Nobody can be told; a script still learns what it was."""
    assert outcome(node, redirection, "job", "status", "short") == (2, b"", "")
    assert outcome(node, redirection, "job", "status", "99999999") == (3, b"", "")
    assert outcome(node, redirection, "nodes").code == 0


def test_without_a_stdin_nothing_else_is_read(node: FakeNode) -> None:
    """Commands that ask or read say what is the matter; the others do not care."""
    node.volumes.add("data")
    asked = outcome(node, "<&-", "job", "delete-all")
    assert (asked.code, "give --yes" in asked.err) == (2, True)
    read = outcome(node, "<&-", "volume", "import", "data")
    assert (read.code, read.err) == (2, "rnx: cannot read -: Bad file descriptor\n")
    assert outcome(node, "<&-", "run", "x") == (0, b"begun\n", "")


@pytest.mark.parametrize(
    ("program", "words"), [("jobc", ("logs", ID)), ("worker_service", ("stream", ID)), ("jobc", ("status", ID))]
)
def test_the_small_clients_do_likewise(node: FakeNode, program: str, words: tuple[str, ...]) -> None:
    """They share the entry with rnx."""
    found = outcome(node, ">/dev/full", *words, program=program)
    assert (found.code, found.err) == (1, f"{program.replace('_', '-')}: {FULL}")


def test_a_path_that_is_no_text_is_printed_as_it_is(tmp_path: Path) -> None:
    """Where the locale is C, which says nothing about names, whoever reads the path can open it."""
    directory = os.fsencode(tmp_path) + b"/\xff"
    process = subprocess.run(
        [sys.executable, "-m", "cli.joblet.main", "certs", "init", directory],
        cwd=REPOSITORY,
        env=environment() | {"LC_ALL": "C.UTF-8"},
        capture_output=True,
        timeout=120,
        check=True,
    )
    assert process.stdout.startswith(directory + b"/ca.crt\n")


def test_characters_that_the_encoding_lacks_are_shown(node: FakeNode) -> None:
    """A locale of Latin-1 has an é and no 漢: what can be printed is, and the rest as control characters are."""
    found = outcome(node, "", "job", "list", PYTHONIOENCODING="latin-1")
    assert (found.code, found.err) == (0, "")
    assert found.out.splitlines()[1].endswith(b"'\xe9\\u6f22'")
