"""Uploads: files and directories of the caller arrive in /work, owned by the job and bounded."""

import hashlib
import os
import subprocess
from pathlib import Path

import pytest

from tests.e2e.node import Node
from tests.waiting import wait_for


@pytest.fixture
def tree(tmp_path: Path) -> Path:
    """A directory with a program, an empty file, a nested file, a symbolic link and an empty directory."""
    root = tmp_path / "project"
    (root / "deep" / "deeper").mkdir(parents=True)
    (root / "empty-directory").mkdir()
    (root / "empty").touch()
    (root / "deep" / "deeper" / "data.bin").write_bytes(bytes(range(256)) * 16)
    (root / "tool.sh").write_text("#!/bin/sh\necho tool says $1\n")
    (root / "tool.sh").chmod(0o755)
    (root / "link").symlink_to("tool.sh")
    return root


def test_file(node: Node, tmp_path: Path) -> None:
    """One file comes byte for byte; /work grows by what is uploaded."""
    data = os.urandom(3 * 2**20)
    (tmp_path / "data.bin").write_bytes(data)
    done = node.ok("job", "run", "--upload", str(tmp_path / "data.bin"), "--", "sha256sum", "data.bin")
    assert done.split()[0].decode() == hashlib.sha256(data).hexdigest()


def test_uploaded_bytes_through_cat(node: Node, tmp_path: Path) -> None:
    """64 MiB up, through `cat`, and down again: the same bytes."""
    data = os.urandom(64 * 2**20)
    (tmp_path / "data.bin").write_bytes(data)
    assert node.ok("job", "run", "--upload", str(tmp_path / "data.bin"), "--", "cat", "data.bin") == data


def test_directory(node: Node, tree: Path) -> None:
    """Structure, content, modes and links inside; everything belongs to the job."""
    script = "./tool.sh yes; ./link linked; find . | sort; sha256sum deep/deeper/data.bin; find . ! -uid $(id -u)"
    out = node.ok(
        "job", "run", "--upload-dir", str(tree), "--", "sh", "-c", f"cd /work/{tree.name} 2>/dev/null; {script}"
    )
    lines = out.decode().splitlines()
    assert lines[:2] == ["tool says yes", "tool says linked"]
    assert lines[2:-1] == [
        ".",
        "./deep",
        "./deep/deeper",
        "./deep/deeper/data.bin",
        "./empty",
        "./empty-directory",
        "./link",
        "./tool.sh",
    ]
    assert lines[-1].split()[0] == hashlib.sha256(bytes(range(256)) * 16).hexdigest()


def test_job_may_change_what_was_uploaded(node: Node, tmp_path: Path) -> None:
    """It is a copy, and the job's own."""
    (tmp_path / "note").write_text("before\n")
    out = node.ok("job", "run", "--upload", str(tmp_path / "note"), "--", "sh", "-c", "echo after >> note; cat note")
    assert out == b"before\nafter\n"
    assert (tmp_path / "note").read_text() == "before\n"


def test_upload_that_does_not_fit_is_refused(node: Node, tmp_path: Path) -> None:
    """More than --work-size: the reason names the size and the option, and nothing stays staged."""
    (tmp_path / "big").write_bytes(bytes(8 * 2**20))
    done = node.rnx("job", "run", "--work-size", "1MB", "--upload", str(tmp_path / "big"), "--", "true")
    assert done.returncode not in (0, 5), done
    assert b"work" in done.stderr.lower()
    assert b"Traceback" not in done.stderr
    wait_for(lambda: not list((node.base / "uploads").glob("*.tar")), what="the staged upload to be removed")


def test_missing_file_is_a_usage_error(node: Node, tmp_path: Path) -> None:
    """Found before anything is sent."""
    done = node.rnx("job", "run", "--upload", str(tmp_path / "no-such-file"), "--", "true")
    assert done.returncode == 2
    assert b"no-such-file" in done.stderr


@pytest.mark.threat("B19")
def test_links_out_of_the_tree_are_harmless(node: Node, tmp_path: Path) -> None:
    """A symbolic link to a host file is refused or stays a link: its content is never sent."""
    secret = tmp_path / "secret"
    secret.write_text("the content of another file\n")
    project = tmp_path / "project"
    project.mkdir()
    (project / "absolute").symlink_to(secret)
    (project / "upwards").symlink_to("../secret")
    done = node.rnx("job", "run", "--upload-dir", str(project), "--", "sh", "-c", "cat /work/* /work/*/*; true")
    assert b"the content" not in done.stdout


@pytest.mark.threat("D22")
def test_client_that_leaves_in_the_middle_leaves_nothing(node: Node, tmp_path: Path) -> None:
    """Kill -9 of rnx during an upload: no job, no staged file."""
    with (tmp_path / "huge").open("wb") as file:
        file.truncate(3 * 2**30)
    before = len(node.jobs("--all"))
    rnx = node.background("job", "run", "--work-size", "4GB", "--upload", str(tmp_path / "huge"), "--", "true")
    staged = node.base / "uploads"
    wait_for(
        lambda: any(each.stat().st_size > 2**20 for each in staged.iterdir() if each.is_file()),
        what="the upload to begin",
    )
    rnx.kill()
    rnx.communicate()
    wait_for(lambda: not [each for each in staged.rglob("*") if each.is_file()], what="the half upload to be removed")
    assert len(node.jobs("--all")) == before


def test_names_with_odd_characters(node: Node, tmp_path: Path) -> None:
    """Spaces, dashes, newlines and bytes that are no UTF-8 in names: kept, or refused in words."""
    project = tmp_path / "odd"
    project.mkdir()
    for name in ("two words", "-dash", "ünïcode", "new\nline"):
        (project / name).write_text(name)
    done = node.rnx("job", "run", "--upload-dir", str(project), "--", "sh", "-c", "find /work -type f | wc -l")
    assert done.returncode != 0 or done.stdout.split() == [b"5"], "one name has two lines"
    assert b"Traceback" not in done.stderr
    (project / os.fsdecode(b"\xff")).write_text("x")
    refused = subprocess.run(
        node.command("job", "run", "--upload-dir", str(project), "--", "true"), capture_output=True, check=False
    )
    assert b"Traceback" not in refused.stderr
