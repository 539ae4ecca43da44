"""From a path to the disks behind it, over mounts and a /sys of the test's own."""

from pathlib import Path

from common.linux import mountinfo
from common.linux.mountinfo import Mount
from services.executor.cgroups.disks import Disk, KernelReader, disks_behind, scheduler, whole_disks

MOUNTINFO = """\
27 1 254:1 / / rw,relatime - ext4 /dev/vda1 rw,discard
28 27 0:25 / /run rw - tmpfs tmpfs rw
29 27 8:16 / /opt rw,relatime shared:3 - xfs /dev/sdb rw
30 27 0:31 /jobs /opt\\040more rw - btrfs /dev/vda2 rw
31 27 253:0 / /usr/local ro - ext4 /dev/mapper/vg-local ro
32 27 0:40 / /over rw - overlay overlay rw,lowerdir=/usr
33 27 0:41 / /shared rw - nfs4 host:/export rw
34 27 7:0 / /loop rw - ext4 /dev/loop0 rw
35 27 0:42 / /opt/tmp rw - tmpfs tmpfs rw
nonsense
"""
VDA, SDB, SDC = Disk("254:0", "vda"), Disk("8:16", "sdb"), Disk("8:32", "sdc")
LOCAL, LOOP = Disk("253:0", "dm-0"), Disk("7:0", "loop0")


class Host:
    """A reader over MOUNTINFO; paths are taken as they are."""

    def mounts(self) -> tuple[Mount, ...]:
        """See Reader."""
        return mountinfo.parse(MOUNTINFO)

    def place(self, path: str) -> tuple[str, int]:
        """The mount whose point is the longest above the path."""
        holding = [each for each in self.mounts() if Path(path).is_relative_to(each.point)]
        return path, max(holding, key=lambda each: len(each.point)).id

    def whole_disk(self, device: str) -> Disk | None:
        """254:1 and 254:2 are partitions."""
        disks = {"254:1": VDA, "254:2": VDA, "8:16": SDB, "8:32": SDC, "253:0": LOCAL, "7:0": LOOP}
        return disks.get(device)

    def members(self, source: str) -> tuple[str, ...]:
        """The file system of the last partition is on two disks."""
        return ("254:2", "8:32") if source == "/dev/vda2" else ()


def behind(*paths: str) -> tuple[Disk, ...]:
    """The disks of that host."""
    return disks_behind(paths, Host())


def test_a_partition_counts_as_its_disk() -> None:
    """The kernel limits whole disks only."""
    assert behind("/etc") == (VDA,)
    assert behind("/etc", "/bin", "/")[:1] == (VDA,)


def test_a_device_is_looked_up_as_its_disk() -> None:
    """Of partitions, each disk once; a loop device and a mapping are disks; what has none is left out."""
    assert whole_disks(("254:1", "254:2", "7:0", "253:0", "0:42"), Host()) == ("254:0", "7:0", "253:0")


def test_mounts_below_a_path_count() -> None:
    """A bind of /usr brings /usr/local along, which is on another disk; of the name /usr, not of a longer one."""
    assert behind("/usr") == (VDA, LOCAL)
    assert behind("/opt/joblet/jobs") == (SDB,)
    assert behind("/opt") == (SDB,)


def test_what_has_no_disk() -> None:
    """tmpfs, overlay and network file systems have none, and so nothing is limited there."""
    assert behind("/run", "/over/jobs", "/shared") == ()


def test_devices_that_are_disks_by_themselves() -> None:
    """Device mapper and loop are limited as they are; what they lie on is not looked for."""
    assert behind("/usr/local/lib", "/loop/x") == (LOCAL, LOOP)


def test_btrfs_over_two_disks() -> None:
    """Its files have a device number that is no block device; all its disks count."""
    assert behind("/opt more/jobs") == (VDA, SDC)


def test_mountinfo_is_parsed() -> None:
    """Octal escapes are undone, optional fields skipped, lines of another shape left out."""
    mounts = mountinfo.parse(MOUNTINFO)
    assert len(mounts) == 9
    assert mounts[2] == Mount(29, "8:16", "/opt", "xfs", "/dev/sdb")
    assert mounts[3].point == "/opt more"
    assert [mount.point for mount in mountinfo.below(mounts, "/opt")] == ["/opt/tmp"]
    assert len(mountinfo.below(mounts, "/")) == 8


def test_a_mount_has_one_line_whatever_it_is_called() -> None:
    """The kernel escapes the end of a line, and nothing else that ends lines of text."""
    point = "/opt/a\rb\x0bc\x0cd\x1ce\x85f\u2028g"
    mounts = mountinfo.parse(f"30 27 8:16 / {point} rw - xfs /dev/sdb rw\n31 27 8:17 / /srv rw - xfs /dev/sdc rw\n")
    assert [mount.point for mount in mounts] == [point, "/srv"]


def fake_sysfs(root: Path) -> Path:
    """A disk with a partition, a device mapper device, and the links to them."""
    vda, dm = root / "devices/pci/vda", root / "devices/virtual/dm-0"
    for directory, device in ((vda, "254:0"), (vda / "vda1", "254:1"), (dm, "253:0")):
        directory.mkdir(parents=True)
        (directory / "dev").write_text(f"{device}\n")
        (root / "dev/block").mkdir(parents=True, exist_ok=True)
        (root / "dev/block" / device).symlink_to(directory)
    (vda / "vda1/partition").write_text("1\n")
    (vda / "queue").mkdir()
    (vda / "queue/scheduler").write_text("none [mq-deadline] bfq\n")
    (root / "block").mkdir()
    (root / "block/vda").symlink_to(vda)
    return root


def test_sysfs(tmp_path: Path) -> None:
    """A partition's disk is the directory above it; an unknown number is nothing."""
    reader = KernelReader(fake_sysfs(tmp_path))
    assert reader.whole_disk("254:1") == VDA
    assert reader.whole_disk("254:0") == VDA
    assert reader.whole_disk("253:0") == LOCAL
    assert reader.whole_disk("9:9") is None
    assert reader.members("/dev/null") == ()
    assert reader.members("/nowhere") == ()


def test_scheduler(tmp_path: Path) -> None:
    """The one in brackets; a device without a choice has none."""
    root = fake_sysfs(tmp_path)
    assert scheduler(VDA, root) == "mq-deadline"
    assert scheduler(LOCAL, root) == "none"
    (root / "block/vda/queue/scheduler").write_text("none\n")
    assert scheduler(VDA, root) == "none"


def test_this_host() -> None:
    """Every disk that is found exists, is no partition, and a path that is not there yet counts as where it will be."""
    found = disks_behind(["/"])
    assert set(disks_behind(["/nowhere/at/all"])) <= set(found)
    for disk in found:
        assert Path("/sys/block", disk.name, "dev").read_text().strip() == disk.device
    assert disks_behind(["/proc"]) == ()
