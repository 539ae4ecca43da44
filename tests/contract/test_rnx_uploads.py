"""Uploads of `rnx job run`: what the node gets, and that half an upload is none."""

import os
import shutil
import signal
from collections.abc import Iterator
from pathlib import Path, PurePosixPath

import pytest

from cli.client.contexts import load_context
from cli.client.session import Session
from cli.client.uploads import Source, collect, upload
from common.errors import JobletError
from proto.joblet.v1 import job_pb2
from tests.contract.rnx_fake_node import FakeNode, fake_node


@pytest.fixture
def node(tmp_path: Path) -> Iterator[FakeNode]:
    """A node of this test alone."""
    with fake_node(tmp_path) as served:
        yield served


def test_uploads_reach_the_node(node: FakeNode, tmp_path: Path) -> None:
    """A file comes to its name, a directory's contents to /work: content, modes, links and empty directories."""
    tree = tmp_path / "project"
    (tree / "sub" / "empty").mkdir(parents=True)
    (tree / "sub" / "run.sh").write_bytes(b"#!/bin/sh\n" + b"x" * (600 * 1024))
    (tree / "sub" / "run.sh").chmod(0o750)
    (tree / "link").symlink_to("sub/run.sh")
    single = tmp_path / "data.bin"
    single.write_bytes(b"\x00\x01")
    single.chmod(0o640)
    outcome = node.rnx("run", "-d", "--upload", str(single), "--upload-dir", str(tree), "x")
    assert outcome.err == ""
    entries = [part.entry for part in node.jobs.uploaded if part.HasField("entry")]
    kinds = job_pb2.UploadEntry
    assert [(e.path, e.kind, e.target, e.size_bytes) for e in entries] == [
        ("data.bin", kinds.FILE, "", 2),
        ("link", kinds.SYMLINK, "sub/run.sh", 0),
        ("sub", kinds.DIRECTORY, "", 0),
        ("sub/empty", kinds.DIRECTORY, "", 0),
        ("sub/run.sh", kinds.FILE, "", 10 + 600 * 1024),
    ]
    assert (entries[0].mode, entries[4].mode) == (0o640, 0o750)
    data = b"".join(part.data for part in node.jobs.uploaded)
    assert data == b"\x00\x01#!/bin/sh\n" + b"x" * (600 * 1024)
    assert max(len(part.data) for part in node.jobs.uploaded) <= 2**20
    (request,) = node.jobs.of(job_pb2.RunJobRequest)
    assert [*request.spec.upload_ids] == ["upload-1"]


def test_an_interrupt_ends_an_upload(node: FakeNode, tmp_path: Path) -> None:
    """Ctrl-C while files are sent: nothing goes on, no job is started, exit code 130."""
    node.jobs.upload_gate.clear()
    big = tmp_path / "big"
    with big.open("wb") as file:
        file.truncate(64 * 2**20)
    leader, follower = os.openpty()
    process = node.start("run", "--upload", str(big), "x", stderr=follower)
    os.close(follower)
    shown = b""
    while b"uploading" not in shown:
        shown += os.read(leader, 65536)
    assert node.jobs.upload_begun.wait(20)
    process.send_signal(signal.SIGINT)
    process.communicate(timeout=20)
    os.close(leader)
    assert process.returncode == 130
    assert node.jobs.upload_gone.wait(20)
    assert node.jobs.of(job_pb2.RunJobRequest) == []


def test_a_file_that_shrinks_while_it_is_sent_starts_nothing(node: FakeNode) -> None:
    """Half an upload is no upload: the node is not told that it is complete, and the file is named."""
    source = Source("cut", Path("/dev"), PurePosixPath("null"), job_pb2.UploadEntry.FILE, 0o644, 5)
    context = load_context(node.config, "default")
    node.jobs.upload_gate.clear()
    with Session(context) as session, pytest.raises(JobletError, match="/dev/null shrank while it was sent"):
        upload(session, [source], sent=lambda _: None)
    assert node.jobs.upload_gone.wait(20)
    assert node.jobs.uploaded == []


def test_a_directory_that_becomes_a_link_leads_nowhere(node: FakeNode, tmp_path: Path) -> None:
    """Between the walk and the sending someone puts a link in the way: nothing outside of the tree is sent."""
    (tmp_path / "tree" / "sub").mkdir(parents=True)
    (tmp_path / "tree" / "sub" / "f").write_bytes(b"inside")
    (tmp_path / "secret").mkdir()
    (tmp_path / "secret" / "f").write_bytes(b"secret")
    sources = collect([], [tmp_path / "tree"])
    shutil.rmtree(tmp_path / "tree" / "sub")
    (tmp_path / "tree" / "sub").symlink_to("../secret")
    context = load_context(node.config, "default")
    with Session(context) as session, pytest.raises(JobletError, match=r"cannot send .*/tree/sub/f"):
        upload(session, sources, sent=lambda _: None)
    assert node.jobs.uploaded == []
