"""Which way a new volume is kept: by what the host can, the setting, and what was asked for."""

import asyncio
from pathlib import Path
from typing import Literal

import pytest

from common.config.layout import Layout, layout_of
from common.config.settings import Joblet, Settings, Volumes
from common.errors import JobletError, Reason
from common.messages.volumes import Enforcement, VolumeKind
from services.volumes.disk import Disk
from services.volumes.encryption.fscrypt import Fscrypt
from services.volumes.events import Volume
from services.volumes.gauges import Gauges
from services.volumes.keys import Keys
from services.volumes.records import Records
from services.volumes.storage.select import HostStorages, Possible, open_storages
from services.volumes.store import VolumeStore
from tests.linux.volume_storage import record

NO_ROOT = "only root can mount volumes"
ALL = Possible(memory="", image="", project="", encryption=Fscrypt(), no_encryption="")
IMAGE = ALL._replace(project="no prjquota")
NOTHING = Possible(memory=NO_ROOT, image=NO_ROOT, project=NO_ROOT, encryption=None, no_encryption=NO_ROOT)
FILESYSTEM = VolumeKind.FILESYSTEM


def storages(tmp_path: Path, possible: Possible, quota: Literal["auto", "project", "image"] = "auto") -> HostStorages:
    """Of a host that can these."""
    settings = Settings(joblet=Joblet(volumes=Volumes(quota=quota)))
    return HostStorages(settings, _layout(tmp_path), possible)


def _layout(tmp_path: Path) -> Layout:
    return layout_of(Settings())._replace(volumes=tmp_path / "volumes")


@pytest.mark.parametrize(
    ("possible", "quota", "advisory", "expected"),
    [
        (ALL, "auto", False, Enforcement.PROJECT_QUOTA),
        (ALL, "image", False, Enforcement.IMAGE),
        (ALL, "project", False, Enforcement.PROJECT_QUOTA),
        (IMAGE, "auto", True, Enforcement.IMAGE),  # advisory is a concession, not a wish
        (NOTHING, "auto", True, Enforcement.ADVISORY),
        (IMAGE, "project", True, Enforcement.ADVISORY),
    ],
)
def test_the_best_that_is_allowed(
    tmp_path: Path,
    possible: Possible,
    quota: Literal["auto", "project", "image"],
    *,
    advisory: bool,
    expected: Enforcement,
) -> None:
    """A size that is enforced, by the means that the setting allows, before one that is not."""
    assert storages(tmp_path, possible, quota).choose(FILESYSTEM, encrypted=False, advisory=advisory) == (expected, "")


def test_a_size_that_nobody_enforces_is_refused(tmp_path: Path) -> None:
    """With the reasons and the repair."""
    for possible, quota, reason in ((NOTHING, "auto", NO_ROOT), (IMAGE, "project", "no prjquota")):
        with pytest.raises(JobletError, match=reason) as raised:
            storages(tmp_path, possible, quota).choose(FILESYSTEM, encrypted=False, advisory=False)  # type: ignore[arg-type]
        assert raised.value.reason is Reason.PRECONDITION
        assert "--advisory" in raised.value.detail


def test_what_this_host_cannot_keep_any_more_can_be_removed(tmp_path: Path) -> None:
    """As the refusal says: neither loop devices nor programs are needed for that."""
    gone = storages(tmp_path, ALL._replace(image="install e2fsprogs"))
    volume = record(2**20)
    home = tmp_path / "volumes" / volume.id
    (home / "mount").mkdir(parents=True)
    (home / "image").write_bytes(b"x")

    async def scenario() -> None:
        store = VolumeStore(tmp_path / "volumes.db", now_ns=0)
        records, gauges = Records(store), Gauges(lambda: 0)
        disk = Disk(gone, Keys(tmp_path / "key"), records, gauges, lambda: 0)
        try:
            with pytest.raises(JobletError, match="or remove the volume"):
                await disk.mount(Volume(record=volume), None)
            await disk.delete(Volume(record=volume))
        finally:
            disk.close()
            await records.close()

    asyncio.run(scenario())
    assert not home.exists()


@pytest.mark.requirement("S1.39")
def test_what_is_to_be_encrypted_is_never_in_clear(tmp_path: Path) -> None:
    """In an image, or not at all, whatever else was agreed to."""
    assert storages(tmp_path, ALL).choose(FILESYSTEM, encrypted=True, advisory=False) == (Enforcement.IMAGE, "fscrypt")
    for possible in (NOTHING, IMAGE._replace(encryption=None, no_encryption="no cipher")):
        with pytest.raises(JobletError) as raised:
            storages(tmp_path, possible).choose(FILESYSTEM, encrypted=True, advisory=True)
        assert raised.value.reason is Reason.PRECONDITION
    with pytest.raises(JobletError, match="says project"):
        storages(tmp_path, ALL, "project").choose(FILESYSTEM, encrypted=True, advisory=True)


def test_memory(tmp_path: Path) -> None:
    """Tmpfs with root, never encrypted, never advisory."""
    assert storages(tmp_path, ALL).choose(VolumeKind.MEMORY, encrypted=False, advisory=True) == (Enforcement.TMPFS, "")
    with pytest.raises(JobletError) as raised:
        storages(tmp_path, ALL).choose(VolumeKind.MEMORY, encrypted=True, advisory=False)
    assert raised.value.reason is Reason.INVALID
    with pytest.raises(JobletError) as raised:
        storages(tmp_path, NOTHING).choose(VolumeKind.MEMORY, encrypted=False, advisory=True)
    assert raised.value.reason is Reason.PRECONDITION


def test_a_volume_that_the_host_cannot_keep_any_more(tmp_path: Path) -> None:
    """Is told as such; others are kept by their own way."""
    for enforcement in Enforcement:
        assert storages(tmp_path, ALL).of(record(1, enforcement)).enforcement is enforcement
    with pytest.raises(JobletError, match="cannot any more: no prjquota"):
        storages(tmp_path, IMAGE).of(record(1, Enforcement.PROJECT_QUOTA))
    assert storages(tmp_path, NOTHING).of(record(1, Enforcement.ADVISORY))


def test_the_host_is_asked_without_harm(tmp_path: Path) -> None:
    """Nothing is made by asking; what is there is measured above a directory that is not."""
    found = open_storages(Settings(), _layout(tmp_path))
    assert not (tmp_path / "volumes").exists()
    assert found.found() == (frozenset(), frozenset(), frozenset())
    assert 0 < found.room_bytes() < 2**60
    assert 2**26 < found.memory_bytes() < 2**50
