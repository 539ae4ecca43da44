"""Copies of files and trees on real file systems: whole or not there at all, and whatever a job has left in them."""

import errno
import os
import shutil
import signal
import socket
import stat
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from common.errors import JobletError, Reason
from common.messages.volumes import CopyMethod
from services.volumes.storage.copies import copy_file, freeze, thaw
from services.volumes.storage.copytree import copy_tree, remove_tree
from tests.unit.volume_tars import tree

pytestmark = pytest.mark.skipif(os.geteuid() != 0, reason="needs root")

MIB = 2**20
ROOT = Path(__file__).parents[2]


@contextmanager
def mounted(target: Path, *options: str) -> Iterator[Path]:
    """A file system of a test's own."""
    target.mkdir()
    done = subprocess.run(["mount", *options, str(target)], capture_output=True, text=True, check=False)
    if done.returncode:
        pytest.skip(f"this host does not let us mount: {done.stderr}")
    try:
        yield target
    finally:
        subprocess.run(["umount", str(target)], check=True)


@pytest.fixture
def small(tmp_path: Path) -> Iterator[Path]:
    """A file system of 4 MiB and 300 inodes."""
    with mounted(tmp_path / "small", "-t", "tmpfs", "-o", "size=4m,nr_inodes=300", "none") as root:
        yield root


@pytest.fixture
def with_reflinks(tmp_path: Path) -> Iterator[Path]:
    """A file system whose files can share blocks."""
    if shutil.which("mkfs.btrfs") is None:
        pytest.skip("needs mkfs.btrfs")
    image = tmp_path / "btrfs"
    with image.open("wb") as made:
        made.truncate(48 * MIB)
    subprocess.run(["mkfs.btrfs", "-q", "-M", str(image)], check=True, capture_output=True)
    with mounted(tmp_path / "shared", "-o", "loop", str(image)) as root:
        yield root


@pytest.fixture
def image(tmp_path: Path) -> Path:
    """A file with content, a hole and content again."""
    path = tmp_path / "image"
    with path.open("wb") as made:
        made.write(os.urandom(MIB))
        made.seek(3 * MIB)
        made.write(os.urandom(1000))
        made.truncate(5 * MIB)
    return path


def allocated(path: Path) -> int:
    """Bytes that the file has on its disk."""
    return path.stat().st_blocks * 512


@pytest.mark.requirement("S1.47")
def test_a_copy_of_a_file_is_the_same(tmp_path: Path, image: Path) -> None:
    """Content and size; nobody else can read it; a hole stays one, or with `full` has its blocks like everything."""
    for full in (False, True):
        target = tmp_path / f"copy-{full}"
        assert copy_file(image, target, full=full) in CopyMethod
        assert target.read_bytes() == image.read_bytes()
        assert stat.S_IMODE(target.stat().st_mode) == 0o600
        assert (allocated(target) >= 5 * MIB) == full
    assert {path.name for path in tmp_path.iterdir()} == {"image", "copy-False", "copy-True"}


@pytest.mark.threat("F10")
def test_a_copy_replaces_what_was_there_at_once(tmp_path: Path, image: Path) -> None:
    """What an interrupted copy left is removed; whoever has the old file open still has the old one."""
    target, left = tmp_path / "target", tmp_path / "target.new"
    target.write_text("old")
    left.write_text("half of a copy")
    with target.open() as old:
        copy_file(image, target, full=False)
        assert old.read() == "old"
    assert target.read_bytes() == image.read_bytes()
    assert not left.exists()


def test_links_are_not_followed(tmp_path: Path, image: Path) -> None:
    """Neither in the source's place, nor in that of what is made, nor in the target's."""
    (tmp_path / "link").symlink_to("image")
    with pytest.raises(OSError, match="symbolic link"):
        copy_file(tmp_path / "link", tmp_path / "target", full=False)
    before = image.read_bytes()
    (tmp_path / "other").write_text("content")
    (tmp_path / "target").symlink_to("image")
    (tmp_path / "target.new").symlink_to("image")
    copy_file(tmp_path / "other", tmp_path / "target", full=False)
    assert image.read_bytes() == before
    assert not (tmp_path / "target").is_symlink()
    os.mkfifo(tmp_path / "fifo")
    with pytest.raises(OSError, match="not a regular file"):
        copy_file(tmp_path / "fifo", tmp_path / "target", full=False)


@pytest.mark.requirement("S1.45")
@pytest.mark.parametrize("full", [True, False])
def test_a_full_disk_is_told_and_nothing_is_left(small: Path, tmp_path: Path, *, full: bool) -> None:
    """EXHAUSTED; what had the name before is still there."""
    source = tmp_path / "large"
    source.write_bytes(os.urandom(5 * MIB))
    (small / "target").write_text("old")
    with pytest.raises(JobletError) as refused:
        copy_file(source, small / "target", full=full)
    assert refused.value.reason is Reason.EXHAUSTED
    assert [(path.name, path.read_text()) for path in small.iterdir()] == [("target", "old")]


@pytest.mark.requirement("S1.45")
def test_blocks_are_shared_where_they_can_be(with_reflinks: Path) -> None:
    """A reflink takes no room, but is not made where a copy would have none; a full one has no hole."""
    source = with_reflinks / "source"
    source.write_bytes(os.urandom(18 * MIB))
    os.truncate(source, 20 * MIB)
    assert copy_file(source, with_reflinks / "one", full=False) is CopyMethod.REFLINK
    assert copy_file(source, with_reflinks / "two", full=True) is CopyMethod.REFLINK
    assert allocated(with_reflinks / "two") == 20 * MIB
    for name in ("one", "two"):
        assert (with_reflinks / name).read_bytes() == source.read_bytes()
    os.sync()
    (with_reflinks / "rest").write_bytes(os.urandom(12 * MIB))
    os.sync()
    with pytest.raises(JobletError) as refused:
        copy_file(source, with_reflinks / "three", full=True)
    assert refused.value.reason is Reason.EXHAUSTED
    assert not list(with_reflinks.glob("three*"))
    directory = with_reflinks / "tree"
    directory.mkdir()
    (directory / "file").write_text("content")
    assert copy_tree(str(directory), str(with_reflinks / "again")) is CopyMethod.REFLINK


@pytest.mark.requirement("S1.45")
def test_a_frozen_file_system_waits(tmp_path: Path) -> None:
    """No write passes between freeze and thaw; both can be repeated; a copy of a frozen one's image is clean."""
    path = tmp_path / "image"
    with path.open("wb") as made:
        made.truncate(16 * MIB)
    subprocess.run(["mkfs.ext4", "-q", "-F", str(path)], check=True)
    with mounted(tmp_path / "mount", "-o", "loop", str(path)) as root:
        (root / "before").write_text("before")
        freeze(root)
        try:
            freeze(root)
            writing = threading.Thread(target=(root / "after").write_text, args=("after",))
            writing.start()
            copy_file(path, tmp_path / "copy", full=True)
            assert writing.is_alive()
        finally:
            thaw(root)
            writing.join()
        thaw(root)
        assert (root / "after").read_text() == "after"
    # Read-only, and needing no recovery: nothing was on its way.
    subprocess.run(["/sbin/e2fsck", "-fn", str(tmp_path / "copy")], check=True, capture_output=True)
    with mounted(tmp_path / "again", "-o", "loop,ro,noload", str(tmp_path / "copy")) as again:
        assert sorted(found.name for found in again.iterdir()) == ["before", "lost+found"]


def test_what_cannot_be_frozen_can_be_thawed(small: Path) -> None:
    """A tmpfs is not frozen, and says so; thawing it is nothing."""
    with pytest.raises(OSError, match="FIFREEZE"):
        freeze(small)
    thaw(small)


@pytest.fixture
def hostile(tmp_path: Path) -> Path:
    """A tree as a hostile job may leave it."""
    root = tmp_path / "hostile"
    (root / "d").mkdir(parents=True)
    (root / "d" / "setuid").write_bytes(b"#!/bin/sh\n")
    os.link(root / "d" / "setuid", root / "same")
    (root / "shadow").symlink_to("/etc/shadow")
    os.link(root / "shadow", root / "d" / "shadow", follow_symlinks=False)
    (root / "etc").symlink_to("/etc")
    os.mkfifo(root / "fifo", 0o600)
    os.mknod(root / "disk", stat.S_IFBLK | 0o666, os.makedev(254, 0))
    os.mknod(root / "null", stat.S_IFCHR | 0o666, os.makedev(1, 3))
    with socket.socket(socket.AF_UNIX) as bound:
        directory = os.open(root, os.O_PATH)
        bound.bind(f"/proc/self/fd/{directory}/socket")
        os.close(directory)
    (root / "d" / "shut").mkdir()
    (root / "d" / "shut" / "file").write_text("x")
    for path in [root, *root.rglob("*")]:
        os.chown(path, 101_000, 101_001, follow_symlinks=False)
    (root / "d" / "setuid").chmod(0o6755)
    (root / "d" / "shut").chmod(0)
    os.setxattr(root / "same", "user.kept", b"\0value")
    os.setxattr(root / "d", "user.kept", b"of a directory")
    os.setxattr(root / "same", "trusted.lost", b"value")
    return root


@pytest.mark.threat("A11")
@pytest.mark.requirement("S1.45")
def test_a_hostile_tree_is_copied_as_it_is_but_for_devices(hostile: Path, tmp_path: Path) -> None:
    """Links are links, owners and modes stay, names of one file are names of one file; no device, no socket."""
    target = tmp_path / "copy"
    assert copy_tree(str(hostile), str(target)) is CopyMethod.COPY
    expected = tree(hostile)
    for left_out in ("disk", "null", "socket"):
        del expected[left_out]
    assert tree(target) == expected
    assert {(path.lstat().st_uid, path.lstat().st_gid) for path in [target, *target.rglob("*")]} == {(101_000, 101_001)}
    assert os.getxattr(target / "same", "user.kept") == b"\0value"
    assert os.getxattr(target / "d", "user.kept") == b"of a directory"
    assert os.listxattr(target / "same") == ["user.kept"]
    assert target.stat().st_mtime_ns == hostile.stat().st_mtime_ns
    assert {path.name for path in tmp_path.iterdir()} == {"hostile", "copy"}


def test_a_copy_of_a_tree_takes_no_name_that_is_taken(hostile: Path, tmp_path: Path) -> None:
    """Also not a dangling link's. What an interrupted copy left, both directories, is removed."""
    (tmp_path / "copy").symlink_to("nothing")
    with pytest.raises(FileExistsError):
        copy_tree(str(hostile), str(tmp_path / "copy"))
    (tmp_path / "copy").unlink()
    for left in ("copy.new", "copy.new.links"):
        (tmp_path / left / "below").mkdir(parents=True)
        (tmp_path / left / "below" / "file").write_text("half")
    copy_tree(str(hostile), str(tmp_path / "copy"))
    assert "below" not in tree(tmp_path / "copy")
    assert {path.name for path in tmp_path.iterdir()} == {"hostile", "copy"}


def test_a_source_that_is_a_link_is_refused(hostile: Path, tmp_path: Path) -> None:
    """The directory itself must stand there."""
    (tmp_path / "link").symlink_to(hostile)
    with pytest.raises(NotADirectoryError):
        copy_tree(str(tmp_path / "link"), str(tmp_path / "copy"))
    assert {path.name for path in tmp_path.iterdir()} == {"hostile", "link"}


def test_holes_of_files_in_a_tree_stay(tmp_path: Path) -> None:
    """Content before, between and behind them is the same."""
    (tmp_path / "tree").mkdir()
    with (tmp_path / "tree" / "sparse").open("wb") as made:
        for place in (0, 40, 90):
            made.seek(place * MIB)
            made.write(b"content")
        made.truncate(100 * MIB)
    copy_tree(str(tmp_path / "tree"), str(tmp_path / "copy"))
    copy = tmp_path / "copy" / "sparse"
    assert allocated(copy) <= MIB
    assert copy.stat().st_size == 100 * MIB
    assert copy.read_bytes() == (tmp_path / "tree" / "sparse").read_bytes()


@pytest.mark.parametrize("depth", [10_000])
def test_depth_does_not_matter(tmp_path: Path, depth: int) -> None:
    """More levels than descriptors, than calls Python nests, and than a path may name: copied, and removed."""
    opened = os.open(tmp_path, os.O_RDONLY)
    for name in ("tree", *["d"] * depth):
        os.mkdir(name, dir_fd=opened)
        below = os.open(name, os.O_RDONLY, dir_fd=opened)
        os.close(opened)
        opened = below
    os.close(os.open("bottom", os.O_CREAT | os.O_WRONLY, dir_fd=opened))
    os.close(opened)
    copy_tree(str(tmp_path / "tree"), str(tmp_path / "copy"))
    found = subprocess.run(["find", str(tmp_path / "copy"), "-printf", "%y\n"], capture_output=True, check=True)
    assert found.stdout.split() == [b"d"] * (depth + 1) + [b"f"]
    remove_tree(tmp_path / "tree")
    remove_tree(tmp_path / "copy")
    remove_tree(tmp_path / "copy")
    assert not list(tmp_path.iterdir())


@pytest.mark.threat("C07")
@pytest.mark.parametrize("what", ["bytes", "inodes"])
def test_a_tree_for_which_there_is_no_room_leaves_nothing(small: Path, tmp_path: Path, what: str) -> None:
    """EXHAUSTED for either."""
    source = tmp_path / "tree"
    source.mkdir()
    for number in range(400 if what == "inodes" else 5):
        (source / f"{number}").write_bytes(b"x" if what == "inodes" else os.urandom(MIB))
    with pytest.raises(JobletError) as refused:
        copy_tree(str(source), str(small / "copy"))
    assert refused.value.reason is Reason.EXHAUSTED
    assert not list(small.iterdir())


@pytest.mark.threat("A03")
def test_a_tree_that_changes_meanwhile_leads_nowhere(tmp_path: Path) -> None:
    """Directory and link, file and link swap places all the time: the copy has the one or the other, and no more."""
    outside, source = tmp_path / "outside", tmp_path / "tree"
    outside.mkdir()
    (outside / "witness").write_text("untouched")
    (source / "d").mkdir(parents=True)
    (source / "d" / "inside").write_text("x")
    (source / "link").symlink_to(outside)
    (source / "f").write_text("x")
    (source / "file link").symlink_to(outside / "witness")
    program = (
        "import os, sys; os.chdir(sys.argv[1]); print(flush=True)\n"
        "while True:\n"
        " os.rename('d', 'e'); os.rename('link', 'd'); os.rename('d', 'link'); os.rename('e', 'd')\n"
        " os.rename('f', 'g'); os.rename('file link', 'f'); os.rename('f', 'file link'); os.rename('g', 'f')\n"
    )
    swapping = subprocess.Popen([sys.executable, "-c", program, str(source)], stdout=subprocess.PIPE)
    assert swapping.stdout is not None
    try:
        swapping.stdout.readline()
        seen = set()
        for _ in range(150):
            copy_tree(str(source), str(tmp_path / "copy"))
            for path in (tmp_path / "copy").rglob("*"):
                seen |= {path.name, *([path.read_text()] if path.is_file() and not path.is_symlink() else [])}
            remove_tree(tmp_path / "copy")
    finally:
        swapping.kill()
        swapping.wait()
        swapping.stdout.close()
    assert not {"witness", "untouched"} & seen
    assert (outside / "witness").read_text() == "untouched"


def test_a_mount_below_is_not_entered(tmp_path: Path) -> None:
    """Neither copied nor, above all, emptied."""
    (tmp_path / "tree").mkdir()
    with mounted(tmp_path / "tree" / "mount", "-t", "tmpfs", "none") as inside:
        (inside / "witness").write_text("untouched")
        with pytest.raises(OSError, match="another file system") as refused:
            copy_tree(str(tmp_path / "tree"), str(tmp_path / "copy"))
        assert refused.value.errno == errno.EXDEV
        with pytest.raises(OSError, match="another file system"):
            remove_tree(tmp_path / "tree")
        assert (inside / "witness").read_text() == "untouched"
    assert not list(tmp_path.glob("copy*"))


def test_without_root_what_cannot_be_read_is_told_and_what_is_shut_is_removed(hostile: Path, tmp_path: Path) -> None:
    """The owner of a rootless volume: PRECONDITION with the repair; nothing is left of the copy."""
    (hostile / "disk").unlink()
    (hostile / "null").unlink()
    program = (
        "import os, sys; sys.path.insert(0, sys.argv[1])\n"
        "from services.volumes.storage.copytree import copy_tree, remove_tree\n"
        "home = os.open(sys.argv[2], os.O_PATH); os.fchdir(home)\n"
        "os.setgroups([]); os.setresgid(101001, 101001, 101001); os.setresuid(101000, 101000, 101000)\n"
        "try: copy_tree('hostile', 'copy')\n"
        "except Exception as refused: print(refused)\n"
        "print(sorted(os.listdir('.')))\n"
        "remove_tree('hostile')\n"
        "print(os.listdir('.'))\n"
    )
    os.chown(tmp_path, 101_000, 101_001)
    ran = subprocess.run(
        [sys.executable, "-c", program, str(ROOT), str(tmp_path)], capture_output=True, text=True, check=False
    )
    assert ran.stdout.splitlines() == [
        "'shut' of the volume cannot be read: let its owner read it (chmod u+rwX) in a job",
        "['hostile']",
        "[]",
    ], ran.stderr


@pytest.mark.threat("F10")
def test_a_killed_copy_leaves_no_copy(tmp_path: Path) -> None:
    """Under its name there is nothing; the next one is whole."""
    source = tmp_path / "tree"
    source.mkdir()
    for number in range(300):
        (source / f"{number}").write_text("x")
    # It dies when it opens the file: what was copied so far is there, and it has not come to its end.
    program = (
        "import os, signal, sys; sys.path.insert(0, sys.argv[1])\n"
        "from services.volumes.storage.copytree import copy_tree\n"
        "def die(event, arguments):\n"
        "  if event == 'open' and arguments[0] == sys.argv[4]: os.kill(os.getpid(), signal.SIGKILL)\n"
        "sys.addaudithook(die)\n"
        "copy_tree(sys.argv[2], sys.argv[3])\n"
    )
    target = tmp_path / "copy"
    there = [each.name for each in os.scandir(source)]
    words = (str(ROOT), str(source), str(target), there[200])
    assert subprocess.run([sys.executable, "-c", program, *words], check=False).returncode == -signal.SIGKILL
    assert 100 < len(list(tmp_path.glob("copy.new/*"))) < 300
    assert not target.exists()
    copy_tree(str(source), str(target))
    assert len(list(target.iterdir())) == 300
    assert {path.name for path in tmp_path.iterdir()} == {"tree", "copy"}
