"""Volumes by project quota, where the kernel has it: size and files have bounds, and nobody leaves the project."""

import errno
import os
import subprocess
from collections.abc import Iterator
from pathlib import Path

import msgspec
import pytest

from common.linux import mounts
from common.messages.volumes import Enforcement
from services.executor.linux import namespaces
from services.volumes.linux import quota
from services.volumes.storage import project
from services.volumes.storage.project import ProjectStorage
from tests.linux.volume_storage import (
    BLOCK,
    JOB,
    MIB,
    as_job,
    fill,
    in_child,
    layout_at,
    names,
    needs_loops,
    record,
)

pytestmark = [pytest.mark.skipif(os.geteuid() != 0, reason="needs root"), needs_loops]


@pytest.fixture
def disk(tmp_path: Path) -> Iterator[Path]:
    """An ext4 with project quotas of its own."""
    tmp_path.chmod(0o711)
    image, point = tmp_path / "disk.img", tmp_path / "disk"
    point.mkdir()
    with image.open("wb") as file:
        file.truncate(48 * MIB)
    subprocess.run(
        ["mkfs.ext4", "-q", "-F", "-b", "4096", "-I", "256", "-O", "quota,project", image], check=True, timeout=60
    )
    mounted = subprocess.run(
        ["mount", "-o", "loop,prjquota", image, point], capture_output=True, check=False, timeout=60
    )
    if mounted.returncode:
        pytest.skip("needs project quotas")
    yield point
    subprocess.run(["umount", point], check=True, timeout=60)


@pytest.fixture
def storage(disk: Path) -> ProjectStorage:
    """The real one."""
    assert project.possible(disk / "volumes")
    return ProjectStorage(layout_at(disk / "volumes"))


def test_not_here(tmp_path: Path) -> None:
    """A file system without project quotas is known as such, whatever the kernel."""
    mounts.mount("tmpfs", str(tmp_path), "tmpfs", 0)
    try:
        assert not project.possible(tmp_path / "volumes")
    finally:
        mounts.umount2(str(tmp_path), 0)
    assert not project.possible(Path("/proc/self"))


@pytest.mark.threat("C07")
@pytest.mark.requirement("S1.44")
def test_the_size_is_a_bound(storage: ProjectStorage) -> None:
    """EDQUOT within a block of it, in files and directories as well, and other volumes are not touched."""
    volume, other = record(4 * MIB, Enforcement.PROJECT_QUOTA), record(4 * MIB, Enforcement.PROJECT_QUOTA)
    for each in (volume, other):
        storage.create(each, b"")
    place = storage.mount(volume, b"", JOB)
    blocks, _, why = as_job(lambda: fill("file"), at=place.source).partition(" ")
    assert 1024 - int(blocks) in {0, 1}
    assert why == os.strerror(errno.EDQUOT)
    space, untouched = storage.measure(volume), storage.measure(other)
    assert space is not None
    assert untouched is not None
    assert 4 * MIB - space.used_bytes in {0, BLOCK}
    assert (space.used_inodes, untouched.used_bytes, untouched.used_inodes) == (1, 0, 0)
    storage.resize(volume, 6 * MIB, b"")
    volume = msgspec.structs.replace(volume, size_bytes=6 * MIB)
    assert storage.mount(volume, b"", JOB) == place
    assert as_job(lambda: Path("more").write_bytes(b"x" * MIB), at=place.source) == str(MIB)
    for each in (volume, other):
        storage.delete(each)


@pytest.mark.threat("C07")
def test_files_have_their_own_bound(storage: ProjectStorage) -> None:
    """EDQUOT for the first one above it."""
    volume = record(4 * MIB, Enforcement.PROJECT_QUOTA)
    storage.create(volume, b"")
    place = storage.mount(volume, b"", JOB)
    space = storage.measure(volume)
    assert space is not None

    def make() -> str:
        for number in range(space.inodes + 1):
            try:
                Path(str(number)).touch()
            except OSError as cause:
                return f"{number} {errno.errorcode[cause.errno or 0]}"
        return "all"

    assert as_job(make, at=place.source) == f"{space.inodes} EDQUOT"
    storage.delete(volume)


def test_nobody_leaves_the_project(storage: ProjectStorage) -> None:
    """From within a user namespace the owner of the directory cannot change it, nor its root; nothing is moved in."""
    volume = record(4 * MIB, Enforcement.PROJECT_QUOTA)
    storage.create(volume, b"")
    place = storage.mount(volume, b"", JOB)

    def leave() -> str:
        namespaces.unshare(namespaces.CLONE_NEWUSER)
        Path("own").mkdir()
        answers = []
        for path in (".", "own"):
            directory = os.open(path, os.O_RDONLY)
            try:
                quota.set_project(directory, 0)
                answers.append("left")
            except OSError as cause:
                answers.append(errno.errorcode[cause.errno or 0])
        return " ".join(answers)

    assert as_job(leave, at=place.source) == "EINVAL EINVAL"
    storage.delete(volume)


def test_copies_count_for_their_own_volume(storage: ProjectStorage, disk: Path) -> None:
    """A snapshot for none; restored and cloned content for its volume; no limits are left of what is gone."""
    volume, copy = record(4 * MIB, Enforcement.PROJECT_QUOTA), record(4 * MIB, Enforcement.PROJECT_QUOTA)
    storage.create(volume, b"")
    place = storage.mount(volume, b"", JOB)
    (Path(place.source) / "directory").mkdir()
    (Path(place.source) / "directory" / "file").write_bytes(b"x" * MIB)
    before = storage.measure(volume)
    projects = {_project(place.source)}
    storage.snapshot(volume, "one")
    assert storage.measure(volume) == before
    storage.restore(volume, "one", volume.size_bytes)
    assert storage.measure(volume) == before
    projects.add(_project(storage.mount(volume, b"", JOB).source))
    storage.clone(volume, "one", copy, b"")
    assert storage.measure(copy) == before
    projects.add(_project(storage.mount(copy, b"", JOB).source))
    assert len(projects) == 3
    for each in (volume, copy):
        storage.delete(each)
    assert names(disk / "volumes") == []
    directory = os.open(disk, os.O_RDONLY)
    assert not any(any(quota.usage(directory, each)) for each in projects)
    os.close(directory)
    assert in_child(lambda: "well") == "well"


def _project(path: str) -> int:
    directory = os.open(path, os.O_RDONLY)
    try:
        return quota.project_of(directory)
    finally:
        os.close(directory)
