"""Loop devices of images: one for a file, taken from under nobody, gone with their last user."""

import os
import subprocess
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from common.config.settings import Settings
from common.failpoints import reached
from common.identifiers import new_volume_id
from services.volumes.encryption.choose import encryption_of
from services.volumes.linux import loop
from services.volumes.storage import loops, mounting
from services.volumes.storage.image import ImageStorage
from services.volumes.storage.select import open_storages
from tests.linux.volume_storage import (
    JOB,
    MIB,
    bare_loop_device,
    can_attach,
    killed_at,
    lagging_namespace,
    layout_at,
    loops_below,
    needs_loops,
    record,
)
from tests.waiting import SLOWNESS, wait_for

pytestmark = [pytest.mark.skipif(os.geteuid() != 0, reason="needs root"), needs_loops]


@pytest.fixture
def image(tmp_path: Path) -> Iterator[int]:
    """A file. It has no device afterwards."""
    path = tmp_path / "image"
    path.write_bytes(b"x" * MIB)
    descriptor = os.open(path, os.O_RDWR)
    yield descriptor
    os.close(descriptor)
    wait_for(lambda: not loops_below(tmp_path), what="loop devices to go")


def test_one_device_for_one_file(image: int, tmp_path: Path) -> None:
    """Who asks while it is attached gets the same one, under whatever name the file is open; then it goes by itself."""
    os.link(tmp_path / "image", tmp_path / "other")
    with loops.attached(image) as device:
        with (tmp_path / "other").open("r+b") as other, loops.attached(other.fileno()) as again:
            assert again == device
        assert loops_below(tmp_path) == [device]
        number = Path(device).stat().st_rdev
        assert loops.holds(f"{os.major(number)}:{os.minor(number)}", image)
        assert not loops.holds("1:0", image)
    wait_for(lambda: not loops_below(tmp_path), what="the device to go")


def test_its_blocks_are_the_images(image: int, tmp_path: Path) -> None:
    """Blocks of 4 KiB, nothing is given back by a discard, and a larger file is taken over."""
    with loops.attached(image) as device:
        queue = Path("/sys/block") / Path(device).name / "queue"
        assert (queue / "logical_block_size").read_text() == "4096\n"
        assert (queue / "discard_max_bytes").read_text() == "0\n"
        os.truncate(tmp_path / "image", 2 * MIB)
        loops.take_size(image)
        descriptor = os.open(device, os.O_RDONLY)
        assert os.lseek(descriptor, 0, os.SEEK_END) == 2 * MIB
        os.close(descriptor)


def test_a_read_only_device_writes_nothing(image: int, tmp_path: Path) -> None:
    """As for a snapshot."""
    descriptor = os.open(tmp_path / "image", os.O_RDONLY)
    with loops.attached(descriptor, read_only=True) as device:
        writing = os.open(device, os.O_RDONLY)
        backing = loop.backing(writing)
        assert backing is not None
        assert backing.flags & loop.LO_FLAGS_READ_ONLY
        os.close(writing)
    os.close(descriptor)
    assert os.fstat(image).st_size == MIB


def test_a_device_is_released_although_it_does_not_go_by_itself(image: int, tmp_path: Path) -> None:
    """One that an administrator attached: while it is used it stays, and goes at its last close."""
    # The number of the free one could be another's by now; this asks again then.
    attach = ["losetup", "--find", "--show", "--sector-size", "4096", f"{tmp_path}/image"]
    path = subprocess.run(attach, stdout=subprocess.PIPE, text=True, check=True).stdout.strip()
    assert loops_below(tmp_path) == [path]
    with loops.attached(image) as device:
        assert device == path
        loops.release(image)
    wait_for(lambda: not loops_below(tmp_path), what="the device to go")
    loops.release(image)
    with bare_loop_device() as bare:  # the other one may be another's by now
        loops.clear(bare)


def test_many_at_once(tmp_path: Path) -> None:
    """Each of six gets a device of its own, whoever takes the free one first."""
    got: dict[str, bytes] = {}
    barrier = threading.Barrier(6)

    def attach(number: int) -> None:
        path = tmp_path / f"image{number}"
        path.write_bytes(bytes([number]) * MIB)
        descriptor = os.open(path, os.O_RDWR)
        try:
            barrier.wait(30 * SLOWNESS)
            with loops.attached(descriptor) as device:
                reading = os.open(device, os.O_RDONLY)
                got[device] = os.read(reading, 1)
                os.close(reading)
                barrier.wait(30 * SLOWNESS)
        finally:
            os.close(descriptor)

    threads = [threading.Thread(target=attach, args=(number,)) for number in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60 * SLOWNESS)
    assert sorted(got.values()) == [bytes([number]) for number in range(6)]
    wait_for(lambda: not loops_below(tmp_path), what="the devices to go")


def test_a_killed_process_leaves_no_device(image: int, tmp_path: Path) -> None:
    """Its descriptor was the only one."""

    def attach() -> None:
        with loops.attached(image):
            reached("volumes.device")

    assert killed_at("volumes.device", tmp_path / "points", attach)
    wait_for(lambda: not loops_below(tmp_path), what="the device to go")


def test_what_is_found_and_let_go(tmp_path: Path) -> None:
    """Mounts and devices of volumes, whoever recorded them, and none of anything else; their files stay."""
    tmp_path.chmod(0o711)
    layout = layout_at(tmp_path / "volumes")
    nothing = open_storages(Settings(), layout).found()
    assert not any(nothing)
    storage, volume = ImageStorage(layout, encryption_of), record(MIB)
    storage.create(volume, b"")
    (layout.volumes / "not-a-volume").mkdir()
    storages = open_storages(Settings(), layout)
    assert storages.found() == (frozenset({volume.id}), frozenset(), frozenset())
    place = storage.mount(volume, b"", JOB)
    storage.snapshot(volume, "one")
    storage.open_snapshot(volume, "one", b"")
    assert storages.found() == (frozenset({volume.id}),) * 3
    open_storages(Settings(), layout)  # a service that was killed had a snapshot open
    assert len(mounting.below(layout.volumes)) == 1
    with lagging_namespace(layout.volumes):
        storages.let_go(volume.id)
        assert storages.found().mounted == frozenset()
        assert storage.mount(volume, b"", JOB) == place
    storages.let_go(volume.id)
    wait_for(lambda: not storages.found().attached, what="the device to go")
    assert storages.found().directories == {volume.id}
    storages.let_go(new_volume_id())
    storage.mount(volume, b"", JOB)
    storage.delete(volume)
    assert can_attach()
