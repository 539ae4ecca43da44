"""Encryption without a kernel: the mapping's life, what is left when it is interrupted, nodes, and the choice."""

import errno
import os
import stat
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from common.errors import JobletError, Reason
from common.identifiers import new_volume_id
from services.volumes.encryption import fscrypt
from services.volumes.encryption.choose import Encryption, choose_encryption, encryption_of
from services.volumes.encryption.dmcrypt import DmCrypt
from services.volumes.encryption.nodes import Nodes
from services.volumes.linux import dm
from tests.unit.volumes_mapper import FakeHost, Kernel

pytestmark = [pytest.mark.requirement("S1.39"), pytest.mark.requirement("S1.46")]

KEY = bytes(range(64))
LOOP1, LOOP2 = "/dev/loop1", "/dev/loop2"
CREATE, REMOVE, RESUME, LOAD, DEPS = 3, 4, 6, 9, 11


class Setting:
    """A kernel, and the encryption on it."""

    def __init__(self) -> None:
        self.kernel = Kernel()
        self.host = FakeHost(self.kernel)
        self.crypt = DmCrypt(self.host)
        self.volume = new_volume_id()
        self.name = f"joblet-{self.volume}"


@pytest.fixture
def setting() -> Setting:
    """With nothing mapped."""
    return Setting()


def test_a_volume_is_mapped(setting: Setting) -> None:
    """All of the device, by AES-256-XTS with the whole key, without discards; found by name and uuid."""
    path = setting.crypt.open(LOOP1, setting.volume, KEY)
    mapped = setting.kernel.mappings[setting.name]
    assert mapped.uuid == f"JOBLET-CRYPT-{setting.volume}"
    assert path == f"/dev/{setting.volume}-{os.minor(mapped.device)}"
    assert mapped.live is not None
    assert (mapped.live.sectors, mapped.live.kind) == (1000, "crypt")
    assert mapped.live.parameters == f"aes-xts-plain64 {KEY.hex()} 0 7:1 0"
    assert setting.crypt.present() == {setting.volume}
    assert setting.crypt.below(setting.volume) == "7:1"
    assert setting.crypt.features() == ()


def test_no_buffer_keeps_the_key(setting: Setting) -> None:
    """What went to the kernel is overwritten afterwards, also when it was refused."""
    setting.crypt.open(LOOP1, setting.volume, KEY)
    setting.kernel.fails[LOAD] = errno.ENOMEM
    with pytest.raises(OSError, match="DM_TABLE_LOAD"):
        setting.crypt.grow(setting.volume, KEY)
    assert setting.kernel.commands.count(LOAD) == 2
    for number, buffer in zip(setting.kernel.commands, setting.kernel.buffers, strict=True):
        assert KEY.hex().encode() not in buffer
        assert number != LOAD or not any(buffer)
    parameters = bytearray(b"secret")
    with pytest.raises(OSError, match="No such device"):
        dm.Control(setting.kernel).load("none", 8, "error", parameters)
    assert parameters == bytes(6)


def test_opening_twice_is_opening_once(setting: Setting) -> None:
    """The mapping that is there is used."""
    path = setting.crypt.open(LOOP1, setting.volume, KEY)
    before = setting.kernel.mappings[setting.name]
    assert setting.crypt.open(LOOP1, setting.volume, KEY) == path
    assert setting.kernel.mappings[setting.name] is before
    assert setting.kernel.commands.count(LOAD) == 1


def test_a_mapping_that_a_job_still_has_is_taken_back(setting: Setting) -> None:
    """Closed while it was mounted, and opened again before the job let go: it stays when the job does let go."""
    path = setting.crypt.open(LOOP1, setting.volume, KEY)
    mapped = setting.kernel.mappings[setting.name]
    mapped.openers = 1
    setting.crypt.close(setting.volume)
    assert mapped.leaving
    assert setting.crypt.present() == {setting.volume}
    assert setting.crypt.open(LOOP1, setting.volume, KEY) == path
    assert not mapped.leaving
    setting.kernel.close(setting.name)
    assert setting.crypt.present() == {setting.volume}


def test_a_mapping_that_goes_meanwhile_is_made_anew(setting: Setting) -> None:
    """Its last opener went between two looks at it."""
    setting.crypt.open(LOOP1, setting.volume, KEY)
    mapped = setting.kernel.mappings[setting.name]
    mapped.openers, mapped.leaving = 1, True

    def call(request: int, buffer: bytearray) -> None:
        if request & 0xFF == 14:
            setting.kernel.close(setting.name)
        setting.kernel(request, buffer)

    setting.host.call = call
    setting.crypt.open(LOOP1, setting.volume, KEY)
    assert setting.kernel.mappings[setting.name] is not mapped


def test_a_mapping_of_another_device_goes_unless_it_is_open(setting: Setting) -> None:
    """Two mappings of one volume would be two file systems over one image."""
    setting.crypt.open(LOOP1, setting.volume, KEY)
    stale = setting.kernel.mappings[setting.name]
    stale.openers = 1
    with pytest.raises(JobletError, match="still mapped to another device") as refused:
        setting.crypt.open(LOOP2, setting.volume, KEY)
    assert (refused.value.reason, refused.value.retryable) == (Reason.UNAVAILABLE, True)
    assert setting.kernel.mappings[setting.name] is stale
    stale.openers = 0
    setting.crypt.open(LOOP2, setting.volume, KEY)
    assert setting.crypt.below(setting.volume) == "7:2"


@pytest.mark.parametrize("step", [LOAD, RESUME])
def test_a_failed_opening_leaves_nothing(setting: Setting, step: int) -> None:
    """And the next one works."""
    setting.kernel.fails[step] = errno.ENOMEM
    with pytest.raises(OSError, match="Cannot allocate memory"):
        setting.crypt.open(LOOP1, setting.volume, KEY)
    assert not setting.kernel.mappings
    setting.crypt.open(LOOP1, setting.volume, KEY)


def test_an_interrupted_opening_is_made_anew(setting: Setting) -> None:
    """Killed before its table counted: nobody can have it open, and without a table it would be an empty device."""
    control = dm.Control(setting.kernel)
    control.create(setting.name, "JOBLET-CRYPT-x")
    control.load(setting.name, 5, "error", bytearray())
    setting.crypt.open(LOOP1, setting.volume, KEY)
    live = setting.kernel.mappings[setting.name].live
    assert live is not None
    assert (live.kind, live.sectors) == ("crypt", 1000)


def test_growing(setting: Setting) -> None:
    """While it is open; and what an interrupted growth left is seen at the next opening."""
    setting.crypt.open(LOOP1, setting.volume, KEY)
    mapped = setting.kernel.mappings[setting.name]
    mapped.openers = 1
    setting.host.sizes[setting.host.devices[LOOP1]] = 2000
    setting.crypt.grow(setting.volume, KEY)
    assert mapped.live is not None
    assert mapped.live.sectors == 2000
    setting.host.sizes[setting.host.devices[LOOP1]] = 3000
    setting.crypt.open(LOOP1, setting.volume, KEY)
    assert mapped.live.parameters == f"aes-xts-plain64 {KEY.hex()} 0 7:1 0"
    assert mapped.live.sectors == 3000
    setting.crypt.grow(new_volume_id(), KEY)  # is not mapped
    interrupted = new_volume_id()
    dm.Control(setting.kernel).create(f"joblet-{interrupted}", interrupted)
    setting.crypt.grow(interrupted, KEY)
    assert setting.kernel.mappings[f"joblet-{interrupted}"].loaded is None


def test_closing(setting: Setting) -> None:
    """At once, or with the last opener; what is gone is no error."""
    setting.crypt.close(setting.volume)
    setting.crypt.open(LOOP1, setting.volume, KEY)
    setting.crypt.close(setting.volume)
    assert not setting.kernel.mappings
    assert setting.crypt.below(setting.volume) == ""
    setting.crypt.open(LOOP1, setting.volume, KEY)
    setting.kernel.mappings[setting.name].openers = 1
    setting.crypt.close(setting.volume)
    assert setting.crypt.present() == {setting.volume}
    setting.kernel.close(setting.name)
    assert setting.crypt.present() == frozenset()
    assert setting.host.dropped == [setting.volume] * 3


def test_mappings_of_others_are_not_ours(setting: Setting) -> None:
    """Whatever they are called; and so many that the first answer does not hold them."""
    control = dm.Control(setting.kernel)
    assert control.names() == ()
    for name in ("joblet-", "joblet-trial-00", f"other-{setting.volume}", f"joblet-{setting.volume}x", "vg-root"):
        control.create(name, name)
    assert setting.crypt.present() == frozenset()
    volumes = {new_volume_id() for _ in range(400)}
    for volume in volumes:
        control.create(f"joblet-{volume}", volume)
    assert setting.crypt.present() == volumes
    assert control.version() == (4, 47, 0)


def test_trying_leaves_nothing(setting: Setting) -> None:
    """Where the cipher is there, and where it is not: then the repair is told."""
    setting.crypt.try_out()
    assert LOAD in setting.kernel.commands
    assert RESUME not in setting.kernel.commands
    setting.kernel.ciphers.clear()
    with pytest.raises(JobletError, match=r"no dm-crypt with AES-256-XTS: .*modprobe dm_crypt") as refused:
        setting.crypt.try_out()
    assert refused.value.reason is Reason.PRECONDITION
    assert not setting.kernel.mappings


@pytest.mark.parametrize(("step", "words"), [(CREATE, "not gone yet"), (LOAD, "device 7:1 is in use already")])
def test_what_is_busy_can_be_tried_again(setting: Setting, step: int, words: str) -> None:
    """A typed error says so."""
    setting.kernel.fails[step] = errno.EBUSY
    with pytest.raises(JobletError, match=words) as refused:
        setting.crypt.open(LOOP1, setting.volume, KEY)
    assert refused.value.retryable
    assert not setting.kernel.mappings


def test_where_there_is_no_device_mapper_there_are_no_mappings(tmp_path: Path) -> None:
    """Looking and closing find nothing; opening says what is missing."""

    class Without(Nodes):
        """A kernel that does not know the number."""

        def _open_control(self) -> int:
            raise OSError(errno.ENODEV, "No such device")

        def number(self, path: str) -> int:  # noqa: ARG002  # any device
            return 1

        def sectors(self, device: int) -> int:  # noqa: ARG002  # any device
            return 1

    crypt, volume = DmCrypt(Without(tmp_path)), new_volume_id()
    crypt.close(volume)
    assert (crypt.present(), crypt.below(volume)) == (frozenset(), "")
    attempts: list[Callable[[], object]] = [lambda: crypt.open("/dev/x", volume, KEY), crypt.try_out]
    for attempt in attempts:
        with pytest.raises(JobletError, match="has no device mapper: use a kernel with CONFIG_BLK_DEV_DM") as refused:
            attempt()
        assert refused.value.reason is Reason.PRECONDITION


@pytest.mark.skipif(os.geteuid() != 0, reason="needs root")
def test_nodes_are_made_where_nobody_makes_them(tmp_path: Path) -> None:
    """Root's only, of the right number, also over an old one; with the last the directory goes."""
    nodes, volume, other = Nodes(tmp_path), new_volume_id(), new_volume_id()
    device = os.makedev(253, 300)
    path = Path(nodes.of(device, volume))
    found = path.stat()
    assert (stat.S_ISBLK(found.st_mode), found.st_rdev, found.st_mode & 0o777) == (True, device, 0o600)
    assert path.parent.stat().st_mode & 0o777 == 0o700
    assert nodes.of(device, volume) == str(path)
    assert Path(nodes.of(os.makedev(253, 301), volume)).stat().st_rdev == os.makedev(253, 301)
    nodes.of(device, other)
    nodes.drop(volume)
    nodes.drop(volume)
    assert [each.name for each in path.parent.iterdir()] == [other]
    nodes.drop(other)
    assert not list(tmp_path.iterdir())


@pytest.mark.skipif(os.geteuid() != 0, reason="needs root")
def test_nodes_of_many_volumes_do_not_meet(tmp_path: Path) -> None:
    """Whoever removes the directory with his node does not keep another from making his."""
    nodes = Nodes(tmp_path)

    def live(number: int) -> None:
        volume = new_volume_id()
        for _ in range(200):
            nodes.of(os.makedev(253, number), volume)
            nodes.drop(volume)

    with ThreadPoolExecutor(4) as threads:
        for done in [threads.submit(live, number) for number in range(4)]:
            done.result()
    assert not list(tmp_path.iterdir())


@pytest.mark.skipif(os.geteuid() != 0, reason="needs root")
def test_the_kernels_own_node_is_used_when_it_is_the_right_one(tmp_path: Path) -> None:
    """A node of that name with another number, or a link, is not."""
    nodes, volume = Nodes(tmp_path), new_volume_id()
    os.mknod(tmp_path / "dm-4", stat.S_IFBLK | 0o600, os.makedev(253, 4))
    assert nodes.of(os.makedev(253, 4), volume) == str(tmp_path / "dm-4")
    os.mknod(tmp_path / "dm-5", stat.S_IFBLK | 0o600, os.makedev(7, 5))
    (tmp_path / "dm-6").symlink_to("dm-4")
    for minor in (5, 6):
        assert nodes.of(os.makedev(253, minor), volume) == str(tmp_path / "joblet-volumes" / volume)


@pytest.mark.skipif(os.geteuid() != 0, reason="needs root")
def test_a_directory_that_others_can_write_is_refused(tmp_path: Path) -> None:
    """Or that is none: whoever puts a node there chooses what is mounted."""
    ours = tmp_path / "joblet-volumes"
    ours.mkdir()
    ours.chmod(0o777)
    with pytest.raises(JobletError, match="not a directory of joblet's alone"):
        Nodes(tmp_path).of(1, new_volume_id())
    ours.rmdir()
    ours.symlink_to(tmp_path)
    with pytest.raises(JobletError, match="not a directory of joblet's alone"):
        Nodes(tmp_path).of(1, new_volume_id())


def test_only_block_devices_are_mapped() -> None:
    """Whatever the path is."""
    with pytest.raises(JobletError, match="/dev/null is no block device"):
        Nodes().number("/dev/null")


def test_the_choice_is_told() -> None:
    """What it is, or why there is none; a second choice says what it does not hide."""
    encryption, why = choose_encryption()
    if encryption is None:
        assert "run the node as root" in why or ("CONFIG_BLK_DEV_DM" in why and "CONFIG_FS_ENCRYPTION" in why)
    elif encryption.name == "fscrypt":
        assert why.startswith("contents and names of files are encrypted; their number, sizes")
        assert "CONFIG_BLK_DEV_DM" in why or "dm-crypt failed" in why
    else:
        assert (encryption.name, why) == ("dm-crypt", "")


def test_a_record_names_its_encryption() -> None:
    """And a name that this release does not know is no reason to open the volume without."""
    both: list[Encryption] = [encryption_of("dm-crypt"), encryption_of("fscrypt")]
    assert [each.name for each in both] == ["dm-crypt", "fscrypt"]
    for name in ("", "none", "luks"):
        with pytest.raises(JobletError, match="unknown encryption") as refused:
            encryption_of(name)
        assert refused.value.reason is Reason.PRECONDITION


def test_fscrypt_maps_nothing() -> None:
    """The file system encrypts: the device is mounted as it is, with the feature that mkfs switched on."""
    crypt, volume = fscrypt.Fscrypt(), new_volume_id()
    assert crypt.open("/dev/loop1", volume, KEY) == "/dev/loop1"
    assert crypt.features() == ("encrypt",)
    crypt.grow(volume, KEY)
    crypt.close(volume)
    assert (crypt.present(), crypt.below(volume)) == (frozenset(), "")
