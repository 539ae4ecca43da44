"""What goes along with a job: the walk over local files, and what it refuses."""

import os
from pathlib import Path

import pytest

from cli.client.uploads import collect, total_bytes
from common.errors import JobletError, Reason


def refused(files: list[Path], directories: list[Path]) -> str:
    """The text of the refusal."""
    with pytest.raises(JobletError) as caught:
        collect(files, directories)
    assert caught.value.reason is Reason.INVALID
    return str(caught.value)


def test_a_name_that_is_no_text_is_refused(tmp_path: Path) -> None:
    """Here, and not by gRPC in the middle of the upload: named alone, or found in a directory."""
    file = tmp_path / os.fsdecode(b"\xff.txt")
    file.write_bytes(b"1")
    assert refused([file], []) == "the name '\\udcff.txt' is no UTF-8: rename the file"
    assert refused([], [tmp_path]) == "the name '\\udcff.txt' is no UTF-8: rename the file"


def test_parents_come_before_children(tmp_path: Path) -> None:
    """Each directory is sent before what is in it; names are relative to the directory that was named."""
    (tmp_path / "b" / "c").mkdir(parents=True)
    (tmp_path / "b" / "c" / "f").write_bytes(b"12345")
    (tmp_path / "a").write_bytes(b"1")
    sources = collect([], [tmp_path])
    assert [source.path for source in sources] == ["a", "b", "b/c", "b/c/f"]
    assert total_bytes(sources) == 6


def test_a_link_that_was_named_is_followed_and_keeps_its_name(tmp_path: Path) -> None:
    """--upload LINK sends the file behind it under the name of the link: the user pointed at it."""
    (tmp_path / "real").write_bytes(b"1")
    (tmp_path / "link").symlink_to("real")
    (source,) = collect([tmp_path / "link"], [])
    assert (source.path, source.local, source.target) == ("link", tmp_path / "real", "")


def test_links_inside_stay_links(tmp_path: Path) -> None:
    """A relative link that stays inside is sent as one, also up and down again; it is not followed."""
    (tmp_path / "d").mkdir()
    (tmp_path / "d" / "up").symlink_to("../d")
    (source,) = [source for source in collect([], [tmp_path]) if source.target]
    assert (source.path, source.target) == ("d/up", "../d")


@pytest.mark.threat("B19")
@pytest.mark.parametrize("target", ["/etc/passwd", "../outside", "d/../../outside"])
def test_links_that_lead_out_are_refused(tmp_path: Path, target: str) -> None:
    """Absolute or above the tree: the error names the link and where it leads."""
    (tmp_path / "bad").symlink_to(target)
    text = refused([], [tmp_path])
    assert str(tmp_path / "bad") in text
    assert target in text


def test_devices_pipes_and_sockets_are_refused(tmp_path: Path) -> None:
    """And opening a pipe to look at it does not hang."""
    os.mkfifo(tmp_path / "pipe")
    assert "is a device, a pipe or a socket" in refused([], [tmp_path])
    assert "is no regular file" in refused([tmp_path / "pipe"], [])


def test_what_does_not_fit_the_option_is_told(tmp_path: Path) -> None:
    """A directory for --upload, a file for --upload-dir, and something that is not there."""
    (tmp_path / "f").write_bytes(b"")
    assert "--upload-dir" in refused([tmp_path], [])
    assert "for a single file" in refused([], [tmp_path / "f"])
    assert "No such file" in refused([tmp_path / "gone"], [])
    assert "No such file" in refused([], [tmp_path / "gone"])


def test_two_files_of_one_name_are_refused(tmp_path: Path) -> None:
    """Neither replaces the other silently; directories of one name are merged."""
    for name in ("one", "two"):
        (tmp_path / name / "same").mkdir(parents=True)
        (tmp_path / name / f"{name}.txt").write_bytes(b"")
    assert len(collect([], [tmp_path / "one", tmp_path / "two"])) == 3
    (tmp_path / "one" / "x").write_bytes(b"")
    (tmp_path / "two" / "x").write_bytes(b"")
    assert "/work/x" in refused([tmp_path / "one" / "x", tmp_path / "two" / "x"], [])


def test_names_that_are_no_utf8_are_refused(tmp_path: Path) -> None:
    """Paths travel as UTF-8."""
    (tmp_path / os.fsdecode(b"bad\xff")).write_bytes(b"")
    assert "is no UTF-8" in refused([], [tmp_path])
