"""Volumes that are a mere directory: counted, not enforced, also without root; nothing in them is followed."""

import os
from pathlib import Path

import pytest

from common.errors import Reason
from common.messages.volumes import Enforcement
from services.volumes.storage import places
from services.volumes.storage.directory import DirectoryStorage
from tests.linux.volume_storage import BLOCK, JOB, MIB, as_job, killed_at, layout_at, names, record, refused


@pytest.fixture
def storage(tmp_path: Path) -> DirectoryStorage:
    """The real one."""
    return DirectoryStorage(layout_at(tmp_path / "volumes"))


def test_the_whole_life(storage: DirectoryStorage, tmp_path: Path) -> None:
    """Made, given to the job, counted, copied, restored, cloned, removed."""
    volume, copy = record(MIB, Enforcement.ADVISORY), record(MIB, Enforcement.ADVISORY)
    storage.create(volume, b"")
    place = storage.mount(volume, b"", JOB)
    if os.geteuid() == 0:
        assert Path(place.source).stat().st_uid == JOB.uid
    assert place.root.endswith(f":{Path(place.source).stat().st_ino}")
    (Path(place.source) / "file").write_bytes(b"x" * BLOCK)
    space = storage.measure(volume)
    assert space is not None
    assert (space.used_bytes, space.used_inodes, space.inodes) == (BLOCK, 1, 0)
    storage.snapshot(volume, "one")
    (Path(place.source) / "file").write_bytes(b"second")
    assert (Path(storage.open_snapshot(volume, "one", b"").source) / "file").stat().st_size == BLOCK
    storage.close_snapshot(volume, "one")
    storage.clone(volume, "", copy, b"")
    assert (Path(storage.mount(copy, b"", JOB).source) / "file").read_bytes() == b"second"
    storage.restore(volume, "one", MIB)
    assert (Path(storage.mount(volume, b"", JOB).source) / "file").stat().st_size == BLOCK
    storage.resize(volume, 2 * MIB, b"")
    storage.unmount(volume)
    storage.drop_snapshot(volume, "one")
    for each in (volume, copy):
        storage.delete(each)
        storage.delete(each)
    assert names(tmp_path / "volumes") == []


@pytest.mark.skipif(os.geteuid() == 0, reason="needs to be unprivileged")
def test_without_root_closed_directories_are_removed(storage: DirectoryStorage) -> None:
    """A job may take its own rights away; the volume goes nevertheless."""
    volume = record(MIB, Enforcement.ADVISORY)
    storage.create(volume, b"")
    closed = Path(storage.mount(volume, b"", None).source) / "closed"
    (closed / "in").mkdir(parents=True)
    closed.chmod(0)
    storage.measure(volume)
    storage.delete(volume)


@pytest.mark.skipif(os.geteuid() != 0, reason="needs root")
def test_it_works_without_root(tmp_path: Path) -> None:
    """The same by a process that has none."""
    volumes = tmp_path / "volumes"
    volumes.mkdir()
    os.chown(volumes, *JOB)
    volume = record(MIB, Enforcement.ADVISORY)

    def life() -> str:
        storage = DirectoryStorage(layout_at(Path("volumes")))
        storage.create(volume, b"")
        place = storage.mount(volume, b"", JOB)
        closed = Path(place.source) / "closed"
        (closed / "in").mkdir(parents=True)
        closed.chmod(0)
        told = storage.measure(volume)
        storage.delete(volume)
        return f"{told.used_inodes if told else None} {names('volumes')}"

    tmp_path.chmod(0o711)
    assert as_job(life, at=tmp_path) == "0 []"


def test_hostile_content_is_counted_and_removed(storage: DirectoryStorage, tmp_path: Path) -> None:
    """Links out are not followed, a file of many names counts once, depth has no bound, the count has one."""
    outside = tmp_path / "outside"
    outside.mkdir()
    (outside / "large").write_bytes(b"x" * MIB)
    volume = record(MIB, Enforcement.ADVISORY)
    storage.create(volume, b"")
    root = Path(storage.mount(volume, b"", None).source)
    (root / "out").symlink_to(outside)
    (root / "file").write_bytes(b"x" * BLOCK)
    for number in range(5):
        os.link(root / "file", root / f"name{number}")
    os.mkfifo(root / "fifo")
    here = os.open(root, os.O_RDONLY)
    for _ in range(3000):
        os.mkdir("d", dir_fd=here)
        deeper = os.open("d", os.O_RDONLY, dir_fd=here)
        os.close(here)
        here = deeper
    os.close(here)
    space = storage.measure(volume)
    assert space is not None
    assert space.used_inodes == 3 + 3000
    assert space.used_bytes < MIB + 3100 * BLOCK
    bounded = DirectoryStorage(layout_at(tmp_path / "volumes"), entries_max=10).measure(volume)
    assert bounded is not None
    assert bounded.used_inodes == 10
    storage.delete(volume)
    assert names(outside) == ["large"]


def test_a_link_in_place_of_the_data_is_refused(storage: DirectoryStorage, tmp_path: Path) -> None:
    """Neither mounted nor counted nor copied; and a missing one is told."""
    volume = record(MIB, Enforcement.ADVISORY)
    storage.create(volume, b"")
    data = tmp_path / "volumes" / volume.id / places.DATA
    data.rmdir()
    for _ in range(2):
        with refused(Reason.DATA_LOSS):
            storage.mount(volume, b"", JOB)
        with refused(Reason.DATA_LOSS):
            storage.snapshot(volume, "one")
        with refused(Reason.DATA_LOSS):
            storage.measure(volume)
        if not data.is_symlink():
            data.symlink_to(tmp_path)
    storage.delete(volume)


@pytest.mark.threat("F10")
def test_killed_while_it_is_made(storage: DirectoryStorage, tmp_path: Path) -> None:
    """Made again, or removed."""
    volume = record(MIB, Enforcement.ADVISORY)
    for place in ("volumes.allocated", "volumes.formatted"):
        assert killed_at(place, tmp_path / "points", lambda: storage.create(volume, b""))
        storage.create(volume, b"")
        assert names(tmp_path / "volumes" / volume.id) == ["data", "snapshots"]
        storage.delete(volume)


@pytest.mark.threat("F10")
def test_an_interrupted_restore_is_completed(storage: DirectoryStorage, tmp_path: Path) -> None:
    """Between its two renames there is no data; whoever comes next finds what is restored."""
    volume = record(MIB, Enforcement.ADVISORY)
    storage.create(volume, b"")
    home = tmp_path / "volumes" / volume.id
    (home / "data" / "file").write_text("old")
    (home / "restored").mkdir()
    (home / "restored" / "file").write_text("new")
    (home / "data").rename(home / "replaced")
    place = storage.mount(volume, b"", None)
    assert (Path(place.source) / "file").read_text() == "new"
    assert names(home) == ["data", "snapshots"]
    storage.delete(volume)
