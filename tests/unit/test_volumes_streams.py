"""Tar archives of volumes: what goes out comes in again, and nothing that is hostile gets anywhere."""

import asyncio
import gzip
import io
import os
import socket
import stat
import subprocess
import tarfile
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from common.errors import JobletError, Reason
from common.messages.volumes import Direction
from services.volumes import tarwriter
from services.volumes.descent import OPEN_MAX, Descent, Found, Moved, walk
from services.volumes.ports import Ids
from services.volumes.streams import ProcessStreams
from services.volumes.tarheader import HEADER_BYTES_MAX, HEADERS_MAX
from services.volumes.tarstream import Incoming, Outgoing
from tests.unit.volume_tars import Member, archive, entry, member, pack, tree, unpack


def refusal(content: bytes, root: Path) -> JobletError:
    """Why it is refused."""
    with pytest.raises(JobletError) as refused:
        unpack(content, root)
    return refused.value


@pytest.fixture
def volume(tmp_path: Path) -> Path:
    """An empty one, with something beside it that nobody may touch."""
    (tmp_path / "outside").mkdir()
    (tmp_path / "outside" / "witness").write_text("untouched")
    root = tmp_path / "volume"
    root.mkdir()
    return root


def filled(root: Path) -> Path:
    """A volume with one of each kind that an archive can have."""
    (root / "d" / "empty").mkdir(parents=True)
    (root / "d" / "file").write_bytes(bytes(range(256)) * 700)
    (root / "d" / "nothing").touch()
    os.link(root / "d" / "file", root / "second name")
    (root / "absolute").symlink_to("/etc/passwd")
    (root / "d" / "up").symlink_to("../../outside")
    os.mkfifo(root / "fifo", 0o640)
    (root / ("n" * 255)).write_text("the longest name")
    (root / "-rf *\n\t\"'").write_text("an odd name")
    (root / os.fsdecode(b"\xff\xfe not UTF-8")).write_text("bytes")
    (root / "ünïcode").write_text("more bytes")
    (root / "d" / "file").chmod(0o640)
    os.utime(root / "d" / "file", ns=(0, 1_700_000_000_123_456_789))
    os.utime(root / "d" / "nothing", ns=(0, -1_500_000_000))
    (root / "d" / "empty").chmod(0o1777)
    os.utime(root / "d", ns=(0, 12_345))
    return root


@pytest.mark.requirement("S1.45")
def test_what_is_exported_is_what_is_imported(volume: Path, tmp_path: Path) -> None:
    """Names of any bytes, contents, modes, times to the nanosecond, links of both kinds."""
    sent, writer = pack(filled(volume))
    again = tmp_path / "again"
    again.mkdir()
    reader = unpack(sent, again)
    assert tree(again) == tree(volume)
    assert (reader.entries, reader.bytes) == (writer.entries, writer.bytes) == (12, 179_200 + 16 + 11 + 5 + 10)


def test_other_programs_read_an_export(volume: Path, tmp_path: Path) -> None:
    """GNU tar unpacks the same tree; Python's own tarfile sees the same names, and owners as a job sees them."""
    sent, _ = pack(filled(volume))
    again = tmp_path / "again"
    again.mkdir()
    subprocess.run(["tar", "-x", "--no-same-owner", "-p", "-C", str(again)], input=sent, check=True)
    for root in (again, volume):
        for path in root.rglob("up"):  # GNU tar has its own idea of when a link out of the archive gets its time
            os.utime(path, ns=(0, 0), follow_symlinks=False)
        os.utime(root / "d", ns=(0, 12_345))
    times_of_links = {"absolute", "d/up"}
    expected, found = tree(volume), tree(again)
    assert {path: what[:2] for path, what in found.items()} == {path: what[:2] for path, what in expected.items()}
    assert [found[path] for path in found if path not in times_of_links] == [
        expected[path] for path in found if path not in times_of_links
    ]
    with tarfile.open(fileobj=io.BytesIO(sent)) as opened:
        assert set(opened.getnames()) == set(expected)
        assert {(info.uid, info.gid, info.uname) for info in opened} == {(1000, 1000, "")}


@pytest.mark.parametrize("form", ["gnu", "pax", "ustar", "v7"])
def test_archives_of_other_programs_are_imported(volume: Path, tmp_path: Path, form: str) -> None:
    """Each format of GNU tar, with long names and links where the format has them; `./` is the volume itself."""
    source = tmp_path / "source"
    long = source / ("l" * 90) / ("m" * (90 if form in {"gnu", "pax"} else 1))
    long.mkdir(parents=True)
    (long / "file").write_bytes(b"x" * 1000)
    (long / "link").symlink_to(("t" * 120) if form in {"gnu", "pax"} else "t")
    os.link(long / "file", source / "hard")
    volume.chmod(0o700)
    made = subprocess.run(["tar", "-c", f"--format={form}", "-C", str(source), "."], capture_output=True, check=True)
    reader = unpack(made.stdout, volume)
    assert {path: what[:2] for path, what in tree(volume).items()} == {
        path: what[:2] for path, what in tree(source).items()
    }
    assert (volume / "hard").stat().st_nlink == 2
    assert reader.entries == 6  # with "./"
    assert stat.S_IMODE(volume.stat().st_mode) == 0o700


def test_an_empty_volume_is_an_empty_archive(volume: Path) -> None:
    """Both ways."""
    sent, writer = pack(volume)
    assert (sent, writer.entries) == (bytes(1024), 0)
    assert unpack(sent, volume).entries == 0


@pytest.mark.parametrize("depth", [3000])
def test_a_deep_tree_survives(volume: Path, tmp_path: Path, depth: int) -> None:
    """Paths are longer than the kernel takes any, directories more than can be open, deeper than Python recurses."""
    opened = os.open(volume, os.O_RDONLY)
    for _ in range(depth):
        os.mkdir("d", 0o750, dir_fd=opened)
        below = os.open("d", os.O_RDONLY, dir_fd=opened)
        os.close(opened)
        opened = below
    os.close(os.open("bottom", os.O_CREAT | os.O_WRONLY, dir_fd=opened))
    os.close(opened)
    again = tmp_path / "again"
    again.mkdir()
    sent, _ = pack(volume)
    assert unpack(sent, again).entries == depth + 1
    root = os.open(again, os.O_RDONLY)
    with Descent(root) as descent:
        for _ in range(depth):
            descent.down("d")
        assert os.listdir(descent.here) == ["bottom"]  # noqa: PTH208  # no path is as long
        assert stat.S_IMODE(os.fstat(descent.here).st_mode) == 0o750
    os.close(root)
    for made in (volume, again):
        subprocess.run(["rm", "-r", str(made)], check=True)


HOSTILE: dict[str, list[Member]] = {
    "an absolute name": [member("/absolute", b"x")],
    "a name that leaves": [member("../outside/new", b"x")],
    "a name that leaves later": [member("a/../../outside/new", b"x")],
    "a directory that leaves": [member("..", kind=tarfile.DIRTYPE)],
    "a file through a link": [member("s", kind=tarfile.SYMTYPE, linkname="../outside"), member("s/witness", b"x")],
    "a directory through a link": [
        member("s", kind=tarfile.SYMTYPE, linkname="../outside"),
        member("s/new", kind=tarfile.DIRTYPE),
    ],
    "a file through a chain of links": [
        member("a/b", kind=tarfile.DIRTYPE),
        member("s", kind=tarfile.SYMTYPE, linkname="a/b"),
        member("t", kind=tarfile.SYMTYPE, linkname="s/../../.."),
        member("t/outside/witness", b"x"),
    ],
    "a link through a link": [
        member("s", kind=tarfile.SYMTYPE, linkname="../outside"),
        member("s/new", kind=tarfile.SYMTYPE, linkname="x"),
    ],
    "a hard link from outside": [member("h", kind=tarfile.LNKTYPE, linkname="../outside/witness")],
    "a hard link to an absolute name": [member("h", kind=tarfile.LNKTYPE, linkname="/etc/passwd")],
    "a hard link through a link": [
        member("s", kind=tarfile.SYMTYPE, linkname="../outside"),
        member("h", kind=tarfile.LNKTYPE, linkname="s/witness"),
    ],
    "a hard link to nothing": [member("h", kind=tarfile.LNKTYPE, linkname="nothing")],
    "a hard link to a directory": [member("d", kind=tarfile.DIRTYPE), member("h", kind=tarfile.LNKTYPE, linkname="d")],
    "a hard link to itself alone": [member("h", kind=tarfile.LNKTYPE, linkname="./h")],
    "a disk": [member("device", kind=tarfile.BLKTYPE, devmajor=254)],
    "a null": [member("device", kind=tarfile.CHRTYPE, devmajor=1, devminor=3)],
    "a type that is none": [member("odd", kind=b"Q")],
    "a file that is no directory": [member("f", b"x"), member("f/below", b"x")],
    "a file in a directory's place": [member("d/f", b"x"), member("d", b"x")],
    "a file that is the volume": [member(".", b"x")],
    "a name that is too long": [member("n" * 256, b"x")],
    "NUL in a name": [member("n", b"x", pax_headers={"path": "a\0b"})],
    "NUL in a link": [member("n", kind=tarfile.SYMTYPE, pax_headers={"linkpath": "a\0b"})],
    "no number for a size": [member("n", b"x", pax_headers={"size": "-1"})],
    "a size of many digits": [member("n", b"x", pax_headers={"size": "9" * 5000})],
    "no number for a time": [member("n", b"x", pax_headers={"mtime": "NaN"})],
    "digits of another script": [member("n", b"x", pax_headers={"mtime": "١"})],
    "a sparse file": [member("n", b"x", pax_headers={"GNU.sparse.major": "1", "GNU.sparse.minor": "0"})],
    "a sparse file of old": [member("n", b"x", kind=tarfile.GNUTYPE_SPARSE)],
}


@pytest.mark.threat("B19")
@pytest.mark.requirement("S1.45")
@pytest.mark.parametrize("name", HOSTILE)
def test_a_hostile_archive_is_refused(volume: Path, name: str) -> None:
    """It is refused with words, nothing outside is touched or linked to, and what came before it stays."""
    error = refusal(archive(member("before", b"good"), *HOSTILE[name], member("after", b"x")), volume)
    assert error.reason is Reason.INVALID
    assert error.message
    assert error.detail
    outside = volume.parent / "outside"
    assert [(path.name, path.read_text()) for path in outside.iterdir()] == [("witness", "untouched")]
    assert (outside / "witness").stat().st_nlink == 1
    assert (volume / "before").read_text() == "good"
    assert not (volume / "after").exists()


@pytest.mark.threat("B19")
def test_a_link_that_was_there_before_is_not_followed(volume: Path) -> None:
    """Neither for a file below it nor for one in its place: that replaces the link and not what it means."""
    (volume / "s").symlink_to("../outside")
    (volume / "w").symlink_to("../outside/witness")
    assert "leads through" in refusal(archive(member("s/witness", b"x")), volume).message
    unpack(archive(member("w", b"new"), member("s", kind=tarfile.DIRTYPE), member("s/witness", b"mine")), volume)
    assert (volume / "w").read_text() == "new"
    assert not (volume / "s").is_symlink()
    assert (volume.parent / "outside" / "witness").read_text() == "untouched"


def test_a_device_is_named(volume: Path) -> None:
    """The refusal says which entry it was, and what to do."""
    error = refusal(archive(member("dev/disk", kind=tarfile.BLKTYPE, devmajor=254)), volume)
    assert str(error).startswith("'dev/disk' is a device: make the archive without it")


@pytest.mark.threat("A11")
def test_set_id_bits_are_taken_away(volume: Path) -> None:
    """Of files and of directories; the sticky bit stays."""
    unpack(archive(member("file", b"x", mode=0o6755), member("d", kind=tarfile.DIRTYPE, mode=0o7777)), volume)
    assert stat.S_IMODE((volume / "file").stat().st_mode) == 0o755
    assert stat.S_IMODE((volume / "d").stat().st_mode) == 0o1777


def test_what_is_there_is_replaced_or_joined(volume: Path) -> None:
    """Files and links are new ones, other names of an old file keep what they had, directories are filled up."""
    (volume / "d").mkdir()
    (volume / "d" / "kept").write_text("kept")
    (volume / "d" / "old").write_text("old")
    os.link(volume / "d" / "old", volume / "other name")
    unpack(
        archive(
            member("d", kind=tarfile.DIRTYPE, mode=0o555),
            member("d/old", b"new"),
            member("d/sub/new", b"x"),
            member("link", kind=tarfile.LNKTYPE, linkname="d/old"),
            member("./d//old", kind=tarfile.LNKTYPE, linkname="d/./old"),
        ),
        volume,
    )
    assert (volume / "d" / "kept").read_text() == "kept"
    assert (volume / "d" / "old").read_text() == (volume / "link").read_text() == "new"
    assert (volume / "other name").read_text() == "old"
    assert stat.S_IMODE((volume / "d").stat().st_mode) == 0o555
    assert stat.S_IMODE((volume / "d" / "sub").stat().st_mode) == 0o755


def test_modes_and_times_of_directories_come_last(volume: Path) -> None:
    """A directory that its owner cannot write is filled first; also when the archive is refused behind it."""
    shut = member("d", kind=tarfile.DIRTYPE, mode=0o500, mtime=1000)
    inside = member("d/e", kind=tarfile.DIRTYPE, mode=0o000, mtime=2000)
    refusal(archive(shut, inside, member("d/e/file", b"x"), member("/bad", b"x")), volume)
    assert stat.S_IMODE((volume / "d").stat().st_mode) == 0o500
    assert (volume / "d").stat().st_mtime == 1000
    assert stat.S_IMODE((volume / "d" / "e").stat().st_mode) == 0
    assert (volume / "d" / "e").stat().st_mtime == 2000


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (b"", "no tar archive"),
        (b"no tar archive at all" * 100, "no tar archive"),
        (gzip.compress(archive(member("f", b"x")), mtime=0), "gunzip"),
        (b"BZh91AY&SY" + bytes(600), "bunzip2"),
        (b"\xfd7zXZ\0" + bytes(600), "unxz"),
        (b"\x28\xb5\x2f\xfd" + bytes(600), "unzstd"),
        (entry(*member("f", b"x")) + b"damaged" * 100, "damaged"),
        (archive(member("f", b"x")) + bytes(2**20 + 4096), "behind the end"),
        (entry(*member("f", b"x", pax_headers={"path": "p"})).replace(b"path=p\n", b"path=pp"), "extended header"),
        (entry(*member("f", b"x", pax_headers={"path": "p"})).replace(b"9 path", b"7 path"), "extended header"),
    ],
)
def test_what_is_no_archive_is_told(volume: Path, content: bytes, words: str) -> None:
    """Compressed ones with the program that unpacks them."""
    error = refusal(content, volume)
    assert error.reason is Reason.INVALID
    assert words in str(error)


def test_no_cut_archive_passes_for_a_whole_one(volume: Path) -> None:
    """Cut anywhere before its end mark it is an error, and half of a file is not kept."""
    whole = archive(
        member("d/a", b"x" * 700),
        member("l" * 150, b"y"),
        member("s", kind=tarfile.SYMTYPE, linkname="d"),
        member("z", b""),
    )
    for cut in range(0, len(whole) - 1024 + 1, 256):
        error = refusal(whole[:cut], volume)
        assert error.reason is Reason.INVALID
        assert not (volume / "d" / "a").exists() or (volume / "d" / "a").read_bytes() == b"x" * 700
    unpack(whole[:-512], volume)  # one block of zeros is an end: some programs write no other


def test_a_header_that_would_fill_the_memory_is_not_read(volume: Path) -> None:
    """Of pax and of GNU; the size alone refuses it."""
    for kind in (tarfile.XHDTYPE, tarfile.XGLTYPE, tarfile.GNUTYPE_LONGNAME, tarfile.GNUTYPE_LONGLINK):
        info = tarfile.TarInfo("bomb")
        info.type, info.size = kind, HEADER_BYTES_MAX + 1
        assert "bytes" in refusal(info.tobuf(tarfile.GNU_FORMAT), volume).message
        info.size = -1
        assert "-1 bytes" in refusal(info.tobuf(tarfile.GNU_FORMAT), volume).message


def test_headers_without_an_entry_end(volume: Path) -> None:
    """Many headers before one entry are refused; Python's tarfile would call itself for each."""
    info = tarfile.TarInfo("again")
    info.type, info.size = tarfile.XHDTYPE, 11
    header = info.tobuf(tarfile.USTAR_FORMAT) + b"11 path=ab\n" + bytes(501)
    assert unpack(header * (HEADERS_MAX - 1) + archive(member("f", b"x")), volume).entries == 1
    assert "headers for one entry" in refusal(header * 5000 + archive(member("f", b"x")), volume).message


def test_zeros_become_holes(volume: Path) -> None:
    """A file that was sparse in its volume fits into one of the same size again."""
    content = b"begin" + bytes(8 * 2**20) + b"end" + bytes(100_000)
    unpack(archive(member("sparse", content)), volume)
    assert (volume / "sparse").read_bytes() == content
    assert (volume / "sparse").stat().st_blocks * 512 <= 2**18


def test_sockets_are_left_out_and_counted(volume: Path) -> None:
    """The rest is there."""
    with socket.socket(socket.AF_UNIX) as bound:
        bound.bind(str(volume / "socket"))
        (volume / "file").touch()
        sent, writer = pack(volume)
    assert writer.left_out == 1
    with tarfile.open(fileobj=io.BytesIO(sent)) as opened:
        assert opened.getnames() == ["file"]


def test_more_hard_links_than_can_be_remembered_are_files(volume: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Their content is whole; only that they were one file is lost."""
    monkeypatch.setattr(tarwriter, "LINK_NAMES_BYTES_MAX", 0)
    (volume / "a").write_text("same")
    os.link(volume / "a", volume / "b")
    sent, writer = pack(volume)
    assert writer.bytes == 8
    with tarfile.open(fileobj=io.BytesIO(sent)) as opened:
        assert [info.isreg() for info in opened] == [True, True]


@pytest.mark.parametrize("change", [0, 100, 700_000])
def test_a_file_that_changes_while_it_is_read_spoils_nothing(volume: Path, change: int) -> None:
    """It is padded with zeros, or cut, to the size that was announced, and counted; what follows is whole."""
    path = volume / "changing"
    path.write_bytes(b"x" * 500_000)
    (volume / "d").mkdir()
    (volume / "d" / "next").write_text("whole")

    class Changing(Outgoing):
        """Changes the file once the first bytes are sent."""

        def flush(self) -> None:
            super().flush()
            os.truncate(path, change)

    sent, writer = pack(volume, Changing)
    assert writer.changed == 1
    with tarfile.open(fileobj=io.BytesIO(sent)) as opened:
        changed, after = opened.extractfile("changing"), opened.extractfile("d/next")
        assert changed is not None
        assert after is not None
        content = changed.read()
        assert len(content) == 500_000
        assert content.startswith(b"x" * 100_000)
        assert after.read() == b"whole"


def _fill(ours: socket.socket) -> None:
    Outgoing(ours, stall_s=0.05).zeros(16 * 2**20)


def _drain(ours: socket.socket) -> None:
    Incoming(ours, stall_s=0.05).exactly(5)


@pytest.mark.parametrize("wait", [_fill, _drain])
def test_nobody_waits_for_ever(wait: Callable[[socket.socket], None]) -> None:
    """A receiver that does not read, and a sender that does not write, are errors."""
    ours, theirs = socket.socketpair()
    with ours, theirs:
        theirs.send(b"some")
        with pytest.raises(JobletError) as stalled:
            wait(ours)
    assert stalled.value.reason is Reason.DEADLINE


def test_a_receiver_that_goes_is_told() -> None:
    """As a thing that may be tried again."""
    ours, theirs = socket.socketpair()
    theirs.close()
    with ours, pytest.raises(JobletError) as gone:
        Outgoing(ours, stall_s=1).zeros(2**20)
    assert gone.value.reason is Reason.UNAVAILABLE


class Mover:
    """Moves a directory away when the walk is deep below it."""

    def __init__(self, depth: int, root: Path) -> None:
        self._left, self._root = depth, root

    def enter(self, found: Found, opened: int) -> bool:  # noqa: ARG002  # a Visitor
        """Count."""
        self._left -= 1
        if not self._left:
            (self._root / "d" / "d").rename(self._root.parent / "outside" / "moved")
        return True

    def leave(self, found: Found) -> None:
        """Nothing."""

    def entry(self, found: Found) -> None:
        """Nothing outside is ever shown."""
        assert found.name != "witness"

    def unreadable(self, parent: int, name: str, cause: OSError) -> bool:  # noqa: ARG002  # a Visitor
        """Never."""
        raise cause


@pytest.mark.threat("A03")
def test_a_walk_does_not_follow_a_directory_that_is_moved(volume: Path) -> None:
    """The way back leads elsewhere: the walk ends, and shows nothing from there."""
    depth = OPEN_MAX + 10
    (volume / "/".join("d" * depth)).mkdir(parents=True)
    root = os.open(volume, os.O_RDONLY)
    try:
        with pytest.raises(Moved):
            walk(root, Mover(depth, volume))
    finally:
        os.close(root)


@pytest.fixture
def run_dir() -> Iterator[Path]:
    """A directory with a short path: a socket's address has 107 bytes."""
    with tempfile.TemporaryDirectory(prefix="v") as name:
        yield Path(name)


def run_stream(source: Path, path: Path) -> tuple[int, int]:
    """An export to that socket."""
    return asyncio.run(ProcessStreams().run(str(source), Direction.EXPORT, str(path), Ids(101_000, 101_000)))


@pytest.mark.parametrize(
    ("name", "reason"),
    [
        ("executor-commands.sock", Reason.INVALID),
        ("volume-stream-0123456789abcdef0123456789abcdef.sock.", Reason.INVALID),
        ("volume-stream-0123456789abcdef0123456789abcdef.sock", Reason.UNAVAILABLE),
        ("volume-stream-11111111111111111111111111111111.sock", Reason.INVALID),
        ("volume-stream-22222222222222222222222222222222.sock", Reason.INVALID),
        ("volume-stream-33333333333333333333333333333333.sock", Reason.UNAVAILABLE),
    ],
)
def test_only_a_socket_of_a_stream_is_connected_to(volume: Path, run_dir: Path, name: str, reason: Reason) -> None:
    """Another name, nothing, a file, a link to a socket, a socket where nobody listens: refused."""
    with socket.socket(socket.AF_UNIX) as other, socket.socket(socket.AF_UNIX) as idle:
        other.bind(str(run_dir / "executor-commands.sock"))
        other.listen()
        (run_dir / "volume-stream-11111111111111111111111111111111.sock").touch()
        (run_dir / "volume-stream-22222222222222222222222222222222.sock").symlink_to("executor-commands.sock")
        idle.bind(str(run_dir / "volume-stream-33333333333333333333333333333333.sock"))
        with pytest.raises(JobletError) as refused:
            run_stream(volume, run_dir / name)
    assert refused.value.reason is reason
