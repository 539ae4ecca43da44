"""Uploads: unpacked into /work with the job's rights, and no archive leads out of it."""

import io
import os
import tarfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.linux.sandboxes import Result, Sandboxes

pytestmark = pytest.mark.skipif(os.geteuid() != 0, reason="needs root")


@pytest.fixture
def sandboxes(tmp_path: Path) -> Iterator[Sandboxes]:
    """A launcher with a base directory of its own."""
    with Sandboxes(tmp_path) as opened:
        yield opened


def member(
    name: str, content: bytes = b"", kind: bytes = tarfile.REGTYPE, **fields: object
) -> tuple[tarfile.TarInfo, bytes]:
    """One entry of an archive."""
    info = tarfile.TarInfo(name)
    info.type, info.size = kind, len(content)
    for key, value in fields.items():
        setattr(info, key, value)
    return info, content


def archive(*members: tuple[tarfile.TarInfo, bytes]) -> bytes:
    """A tar archive."""
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w") as tar:
        for info, content in members:
            tar.addfile(info, io.BytesIO(content))
    return buffer.getvalue()


def run_with(sandboxes: Sandboxes, script: str, content: bytes, **options: object) -> Result:
    """Run a script with an upload."""
    return sandboxes.shell(script, uploads=(sandboxes.stage(content),), **options)


def test_files_arrive_exactly(sandboxes: Sandboxes) -> None:
    """Contents, directories, permission bits and inner links arrive; everything belongs to the job; no set-uid bit."""
    content = archive(
        member("d/e/file", b"\x00\xffhello", mode=0o640),
        member("run", b"#!/bin/sh\necho ran\n", mode=0o6755),
        member("empty/", kind=tarfile.DIRTYPE, mode=0o750),
        member("d/link", kind=tarfile.SYMTYPE, linkname="e/file"),
        member("./twice", b"old"),
        member("twice", b"new"),
    )
    script = "cat d/link; ./run; cat twice; stat -c '%n %a %u %F' d d/e/file run empty"
    out = run_with(sandboxes, script, content).stdout
    uid = "1000"
    assert out.startswith(b"\x00\xffhelloran\nnew")
    assert out[len(b"\x00\xffhelloran\nnew") :].decode().splitlines() == [
        f"d 755 {uid} directory",
        f"d/e/file 640 {uid} regular file",
        f"run 755 {uid} regular file",
        f"empty 750 {uid} directory",
    ]


def test_a_large_upload_fits_by_default(sandboxes: Sandboxes) -> None:
    """/work grows by what is uploaded: 20 MiB arrive exactly, and one MiB is still free."""
    content = os.urandom(20 * 2**20)
    result = run_with(
        sandboxes, "cat big; head -c 900000 /dev/zero >rest && echo fits >&2", archive(member("big", content))
    )
    assert result.stdout == content
    assert result.stderr == b"fits\n"


@pytest.mark.threat("B19")
@pytest.mark.parametrize(
    "hostile",
    [
        [member("/tmp/absolute", b"x")],
        [member("../outside", b"x")],
        [member("a/../../outside", b"x")],
        [member("link", kind=tarfile.SYMTYPE, linkname="/tmp")],
        [member("link", kind=tarfile.SYMTYPE, linkname="../tmp")],
        [member("d/link", kind=tarfile.SYMTYPE, linkname="../../tmp")],
        [member("hard", kind=tarfile.LNKTYPE, linkname="../etc/passwd")],
        [member("file", b"x"), member("hard", kind=tarfile.LNKTYPE, linkname="file")],
        [member("null", kind=tarfile.CHRTYPE, devmajor=1, devminor=3)],
        [member("disk", kind=tarfile.BLKTYPE, devmajor=254)],
        [member("pipe", kind=tarfile.FIFOTYPE)],
        # Each link alone stays inside as text; together they would lead out, and the kernel refuses to follow.
        [
            member("a/b/", kind=tarfile.DIRTYPE),
            member("s", kind=tarfile.SYMTYPE, linkname="a/b"),
            member("t", kind=tarfile.SYMTYPE, linkname="s/../../tmp"),
            member("s2", kind=tarfile.SYMTYPE, linkname="."),
            member("u", kind=tarfile.SYMTYPE, linkname="s2/.."),
            member("u/../outside", b"x"),
        ],
        [member("x" * 5000, b"x")],
        [member("file", b"x"), member("file/below", b"x")],
    ],
)
def test_no_archive_leads_out(sandboxes: Sandboxes, hostile: list[tuple[tarfile.TarInfo, bytes]]) -> None:
    """Absolute paths, '..', links out, hard links, devices and the like stop the job before it starts, and say why."""
    result = run_with(sandboxes, "echo ran", archive(member("good", b"x"), *hostile))
    assert result.exit["outcome"] == "not_started"
    assert result.exit["failure"]["step"] == "upload"
    assert result.exit["failure"]["message"]
    assert result.stdout == b""


def test_a_chain_of_links_cannot_be_written_through(sandboxes: Sandboxes) -> None:
    """A link whose text stays inside but whose walk leaves /work is not followed when a later entry goes through it."""
    content = archive(
        member("a/b/", kind=tarfile.DIRTYPE),
        member("s", kind=tarfile.SYMTYPE, linkname="a"),
        member("a/up", kind=tarfile.SYMTYPE, linkname="../s/.."),
        member("out", kind=tarfile.SYMTYPE, linkname="a/up/x/../.."),
        member("out/tmp/escaped", b"x"),
    )
    result = run_with(sandboxes, "ls /tmp", content)
    assert result.exit["outcome"] == "not_started" or b"escaped" not in result.stdout


@pytest.mark.parametrize("content", [b"", b"no tar archive" * 100, archive(member("f", b"x" * 5000))[:3000]])
def test_a_malformed_archive_is_told(sandboxes: Sandboxes, content: bytes) -> None:
    """What is no archive, or is cut off, stops the job and says so."""
    result = run_with(sandboxes, "echo ran", content)
    assert result.exit["failure"]["step"] == "upload"
    assert "upload" in result.exit["failure"]["message"]


def test_what_fails_at_a_name_that_is_no_text_is_told(sandboxes: Sandboxes) -> None:
    """Names in archives are bytes: the one that does not fit is told in escapes, and the end is readable as ever."""
    result = run_with(sandboxes, "true", archive(member("caf\udce9" + "x" * 300, b"a name too long for a file")))
    assert result.exit["outcome"] == "not_started"
    assert result.exit["failure"]["path"].startswith("caf\\udce9xxx")


def test_too_little_space_names_the_remedy(sandboxes: Sandboxes) -> None:
    """An upload larger than an explicit /work fails with the path and the option that helps."""
    result = run_with(sandboxes, "echo ran", archive(member("large", bytes(3 * 2**20))), work_bytes=2**20)
    assert result.exit["outcome"] == "not_started"
    assert result.exit["failure"]["path"] == "large"
    assert "--work-size" in result.exit["failure"]["message"]


def test_a_missing_archive_is_told(sandboxes: Sandboxes) -> None:
    """A staged file that is gone, or is a link, does not start the job; the node's path is not told."""
    upload = sandboxes.stage(archive(member("f", b"x")))
    path = sandboxes.layout.upload(upload.id)
    path.rename(path.with_suffix(".moved"))
    gone = sandboxes.shell("echo ran", uploads=(upload,))
    path.symlink_to(path.with_suffix(".moved"))
    link = sandboxes.shell("echo ran", uploads=(upload,))
    for result in (gone, link):
        assert result.exit["failure"]["step"] == "upload"
        assert str(sandboxes.layout.base) not in str(result.exit["failure"])
