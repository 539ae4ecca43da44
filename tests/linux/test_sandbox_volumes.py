"""Volumes in the sandbox, attacked from inside and from next to it: what a job sees of one, and what it must not do."""

import io
import json
import os
import stat
import subprocess
import sys
import tarfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from common.linux import mounts
from common.messages.volumes import PreparedVolume
from services.executor.launcher.volumes import PlaceVolume
from tests.e2e.test_rootless import UID, as_user
from tests.leaks import OWN_MARK
from tests.linux.sandboxes import IDENTITY, Result, Sandboxes, host_mounts, prepared, with_task
from tests.waiting import SLOWNESS

pytestmark = pytest.mark.skipif(os.geteuid() != 0, reason="needs root")

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture
def sandboxes(tmp_path: Path) -> Iterator[Sandboxes]:
    """A launcher of this test's own; the host's mounts are the same afterwards."""
    before = host_mounts()
    base = tmp_path / "base"
    base.mkdir()
    with Sandboxes(base) as opened:
        yield opened
    assert host_mounts() == before


@pytest.fixture
def data(tmp_path: Path) -> Path:
    """What stands in for a volume: a directory that belongs to the jobs' owner."""
    return make(tmp_path / "data")


@pytest.fixture
def limited(tmp_path: Path) -> Iterator[Path]:
    """A volume of one MiB: a file system of its own."""
    directory = tmp_path / "limited"
    directory.mkdir()
    mounts.mount("tmpfs", str(directory), "tmpfs", 0, f"size=1m,uid={IDENTITY.uid},gid={IDENTITY.gid},mode=0755")
    yield directory
    mounts.umount2(str(directory), 0)  # not MNT_DETACH: EBUSY would tell of a job that still holds it


def make(directory: Path) -> Path:
    """A directory of the jobs' owner."""
    directory.mkdir(parents=True)
    os.chown(directory, IDENTITY.uid, IDENTITY.gid)
    return directory


def names(directory: Path) -> list[str]:
    """What is in a directory."""
    return [entry.name for entry in directory.iterdir()]


def mount_lines(result: Result) -> dict[str, list[str]]:
    """Mount point → options of the mount, of a job that printed its mountinfo."""
    lines = [line.split() for line in result.stdout.decode().splitlines()]
    return {line[4]: line[5].split(",") for line in lines}


def failure(result: Result) -> dict[str, Any]:
    """Why the job was not started."""
    assert result.exit["outcome"] == "not_started", result
    found: dict[str, Any] = result.exit["failure"]
    return found


def archive(**files: bytes) -> bytes:
    """A tar archive of these files."""
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w") as tar:
        for name, content in files.items():
            info = tarfile.TarInfo(name)
            info.size = len(content)
            tar.addfile(info, io.BytesIO(content))
    return buffer.getvalue()


@pytest.mark.requirement("S1.3")
@pytest.mark.requirement("S1.6")
@pytest.mark.requirement("S1.7")
@pytest.mark.requirement("X11")
def test_what_a_job_writes_the_next_one_reads(sandboxes: Sandboxes, data: Path) -> None:
    """At the default place or another; it is the job's own, and it stays when the job is gone."""
    first = prepared(data, "/volumes/data")
    assert sandboxes.shell("echo hello >/volumes/data/f; stat -c %u:%g /volumes/data", prepared=(first,)).stdout == (
        b"1000:1000\n"
    )
    assert (data / "f").stat().st_uid == IDENTITY.uid
    second = prepared(data, "/some/where/else")
    assert sandboxes.shell("cat /some/where/else/f; ls /volumes", prepared=(second,)).stdout == b"hello\n"


@pytest.mark.requirement("S1.38")
@pytest.mark.threat("A09")
@pytest.mark.threat("A11")
def test_its_mount_has_the_flags_that_it_should(sandboxes: Sandboxes, data: Path, tmp_path: Path) -> None:
    """No set-uid bits, no devices, read-only if it was asked for, programs can be run; nothing of it propagates."""
    other = make(tmp_path / "other")
    volumes = (prepared(data, "/data"), prepared(other, "/other", read_only=True))
    result = sandboxes.run("cat", "/proc/self/mountinfo", prepared=volumes)
    options = mount_lines(result)
    assert {"rw", "nosuid", "nodev"} <= set(options["/data"])
    assert {"ro", "nosuid", "nodev"} <= set(options["/other"])
    assert "noexec" not in options["/data"] + options["/other"]
    assert b"shared:" not in result.stdout
    assert b"master:" not in result.stdout
    script = (
        "printf '#!/bin/sh\\necho ran\\n' >/data/p; chmod +x /data/p; /data/p; echo x >/other/f; mknod /data/n c 1 3"
    )
    result = sandboxes.shell(script, prepared=volumes)
    assert result.stdout == b"ran\n"
    assert b"Read-only file system" in result.stderr
    assert b"mknod" in result.stderr
    assert names(other) == []
    assert names(data) == ["p"]


@pytest.mark.threat("A11")
def test_a_set_uid_program_in_a_volume_gives_nothing(sandboxes: Sandboxes, data: Path) -> None:
    """Not to the job that made it, and not to the next; on the host it belongs to an id that is nobody there.

    One of the host's root, as an operator may put it there, gives nothing either.
    """
    volumes = (prepared(data, "/data"),)
    assert sandboxes.shell("cp /usr/bin/id /data/id; chmod 6755 /data/id; /data/id -u", prepared=volumes).stdout == (
        b"1000\n"
    )
    found = (data / "id").stat()
    assert (found.st_uid, stat.S_IMODE(found.st_mode)) == (IDENTITY.uid, 0o6755)
    os.chown(data / "id", 0, 0)
    (data / "id").chmod(0o6755)
    out = sandboxes.shell("/data/id -u; /data/id -g; grep CapEff /proc/self/status", prepared=volumes).stdout
    assert out.split() == [b"1000", b"1000", b"CapEff:", b"0000000000000000"]


@pytest.mark.threat("A11")
def test_a_device_in_a_volume_is_no_device(sandboxes: Sandboxes, data: Path) -> None:
    """Also when it is there: nodev. Without it the job could read what its own group of devices allows."""
    os.mknod(data / "null", stat.S_IFCHR | 0o666, os.makedev(1, 3))
    (data / "null").chmod(0o666)
    result = sandboxes.shell("cat /data/null", prepared=(prepared(data, "/data"),))
    assert b"ermission denied" in result.stderr


@pytest.mark.threat("A28")
def test_no_library_of_a_volume_is_loaded_before_the_job(sandboxes: Sandboxes, data: Path) -> None:
    """What the environment names is for the job's own program: no process of joblet's looks into the volume."""
    accessed = data / "x.so"
    accessed.write_bytes(b"no library")
    result = sandboxes.shell(
        "echo ran", prepared=(prepared(data, "/data"),), environment={"LD_PRELOAD": "/data/x.so", "PYTHONHOME": "/data"}
    )
    assert result.stdout == b"ran\n"
    assert result.exit["outcome"] == "exited"
    assert b"/data/x.so" in result.stderr  # the job's loader said so, once it was the job


@pytest.mark.threat("C07")
def test_a_full_volume_is_full_for_the_job_only(sandboxes: Sandboxes, limited: Path) -> None:
    """ENOSPC in the job at the size of the volume, and the next one reads what fitted."""
    volumes = (prepared(limited, "/data"),)
    result = sandboxes.shell("head -c 3000000 /dev/zero >/data/f; wc -c </data/f", prepared=volumes)
    assert int(result.stdout) == 2**20
    assert b"No space left" in result.stderr
    assert sandboxes.shell("wc -c </data/f; rm /data/f", prepared=volumes).stdout == b"%d\n" % 2**20


@pytest.mark.requirement("S1.33")
def test_jobs_that_share_a_volume_see_each_other_there_and_nowhere_else(sandboxes: Sandboxes, data: Path) -> None:
    """One writes while the other reads; a job without it has nothing of it."""
    volumes = (prepared(data, "/data"),)
    reader = sandboxes.start("sh", "-c", "until cat /data/f; do sleep 0.05; done 2>/dev/null", prepared=volumes)
    sandboxes.shell("echo shared >/data/part; mv /data/part /data/f", prepared=volumes)
    assert reader.result().stdout == b"shared\n"
    result = sandboxes.shell("ls /data; ls /volumes; grep -c data /proc/self/mountinfo")
    assert result.stdout == b"0\n"


@pytest.mark.requirement("S1.14")
def test_work_and_tmp_can_be_volumes(sandboxes: Sandboxes, data: Path, limited: Path) -> None:
    """There is no tmpfs then: /work is the volume, in which the job begins, and uploads are unpacked in it."""
    upload = sandboxes.stage(archive(**{"in/f": b"uploaded"}))
    volumes = (prepared(data, "/work"), prepared(limited, "/tmp"))
    script = "pwd; cat in/f; echo more >>in/f; echo x >/tmp/x; grep -c ' /work \\| /tmp ' /proc/self/mountinfo"
    assert sandboxes.shell(script, prepared=volumes, uploads=(upload,)).stdout == b"/work\nuploaded2\n"
    assert (data / "in/f").read_bytes() == b"uploadedmore\n"
    assert (data / "in/f").stat().st_uid == IDENTITY.uid
    assert (limited / "x").read_text() == "x\n"


def test_uploads_reach_a_volume_below_work(sandboxes: Sandboxes, data: Path) -> None:
    """The mount point is the job's, as everything in /work; what is above it is, too."""
    upload = sandboxes.stage(archive(**{"a/b/f": b"uploaded"}))
    result = sandboxes.shell(
        "stat -c %u a a/b; touch a/mine; cat a/b/f", prepared=(prepared(data, "/work/a/b"),), uploads=(upload,)
    )
    assert result.stdout == b"1000\n1000\nuploaded"
    assert (data / "f").read_bytes() == b"uploaded"


def test_mount_points_are_made_and_belong_to_who_has_what_is_around_them(sandboxes: Sandboxes, data: Path) -> None:
    """Root's and unchangeable in the root, the job's below /tmp."""
    out = sandboxes.shell("stat -c '%U %a' /x /x/y; touch /x/z /x/y/z", prepared=(prepared(data, "/x/y/data"),))
    assert out.stdout == b"root 755\nroot 755\n"
    assert out.stderr.count(b"Read-only file system") == 2
    out = sandboxes.shell("stat -c '%U %a' /tmp /tmp/y", prepared=(prepared(data, "/tmp/y/data"),))
    assert out.stdout == b"root 1777\njob 755\n"


def test_a_volume_can_be_inside_another_where_there_is_a_directory(sandboxes: Sandboxes, data: Path) -> None:
    """Whatever the order they are named in; joblet makes no directory in a volume."""
    inner = make(data.parent / "inner")
    volumes = (prepared(inner, "/data/in"), prepared(data, "/data"))
    refused = failure(sandboxes.shell("true", prepared=volumes))
    assert refused["path"] == "/data/in"
    assert "make the directory in that volume first" in refused["message"]
    assert names(data) == []
    (data / "in").mkdir()
    sandboxes.shell("echo deep >/data/in/f; echo flat >/data/f", prepared=volumes)
    assert (inner / "f").read_text() == "deep\n"
    assert sorted(names(data)) == ["f", "in"]
    assert names(data / "in") == []


def test_nothing_of_it_is_left_open(sandboxes: Sandboxes, data: Path, limited: Path) -> None:
    """The job has no descriptor of the detached mounts; when it has ended nobody holds the volume (see `limited`)."""
    out = sandboxes.run(
        *("find", "/proc/self/fd", "-type", "l", "-printf", "%f %l\\n"),
        prepared=(prepared(data, "/data"), prepared(limited, "/limited")),
    ).stdout.decode()
    assert [line.split(":")[0] for line in out.splitlines()][:3] == ["0 /dev/null", "1 pipe", "2 pipe"]
    assert "data" not in out
    assert "limited" not in out


@pytest.mark.parametrize("change", ["another", "gone", "link", "link above", "file", "unprepared"])
def test_what_is_not_the_volume_is_not_bound(sandboxes: Sandboxes, data: Path, change: str) -> None:
    """Another directory, none, or a link in its place: the job does not start, and is not told the host's path."""
    volume = prepared(data, "/data")
    moved = data.rename(data.with_name("moved"))
    match change:
        case "another":
            make(data)
        case "link":
            data.symlink_to(moved)
        case "link above":
            (data.parent / "to").symlink_to(data.parent)
            moved.rename(data)
            volume = PreparedVolume(
                id=volume.id, mount=volume.mount, source=f"{data.parent}/to/data", root=volume.root, device=""
            )
        case "file":
            data.touch()
        case "unprepared":
            moved.rename(data)
            volume = PreparedVolume(id=volume.id, mount=volume.mount, source="", root="", device="")
    refused = failure(sandboxes.shell("echo ran", prepared=(volume,)))
    assert refused["step"] == "take volume data of the host (nosuid nodev)"
    told = "symbolic link" if change.startswith("link") else "do both services run in one mount namespace?"
    assert told in refused["message"]
    assert str(data.parent) not in json.dumps(refused)


def test_a_mount_below_the_volume_is_not_brought_along(sandboxes: Sandboxes, data: Path) -> None:
    """Only the volume itself is bound: what somebody mounted in it on the host stays there."""
    (data / "below").mkdir()
    mounts.mount("tmpfs", str(data / "below"), "tmpfs", 0, "size=64k")
    try:
        (data / "below/secret").touch()
        result = sandboxes.shell("ls /data/below", prepared=(prepared(data, "/data"),))
    finally:
        mounts.umount2(str(data / "below"), 0)
    assert result.stdout == b""


@pytest.mark.threat("A03")
@pytest.mark.parametrize("target", ["/etc", "/", "../../../../..", "/proc/self/root", "d", "/usr"])
def test_links_that_a_job_leaves_harm_nobody(sandboxes: Sandboxes, data: Path, target: str) -> None:
    """The next job has its mount point refused there, and neither it nor an upload is led out of the volume."""
    inner = make(data.parent / "inner")
    outer = prepared(data, "/work")
    sandboxes.shell(f"ln -s {target} d; ln -s {target} f", prepared=(outer,))
    for path in ("/work/d", "/work/d/x"):
        refused = failure(sandboxes.shell("echo ran", prepared=(outer, prepared(inner, path))))
        assert refused["path"] == path
        assert "symbolic link" in refused["message"]
    upload = sandboxes.stage(archive(**{"d/passwd": b"hostile"}))
    result = sandboxes.shell("cat /etc/passwd", prepared=(outer,), uploads=(upload,))
    assert b"hostile" not in result.stdout
    assert failure(result)["step"] == "upload"
    assert sandboxes.shell("rm d f; ls", prepared=(outer,)).stdout == b""


FOR_EVER = str(10**9)
SWAPPING = """
import os, sys
directory, swaps = sys.argv[1], int(sys.argv[2])
targets = sys.argv[3:]
os.chdir(directory)
for number in range(swaps):
    os.rename("d", "d2")
    os.symlink(targets[number % len(targets)], "d")
    os.unlink("d")
    os.rename("d2", "d")
"""
PLACING = """
import json, os, sys
from common.linux import mounts
from services.executor.launcher.newroot import NewRoot
from services.executor.launcher.operations import MakeDirectory, MakeMountsPrivate, MountRoot, PlaceVolume
from services.executor.linux import namespaces
place, outer, inner, enough = sys.argv[1], sys.argv[2], sys.argv[3], int(sys.argv[4])
namespaces.unshare(namespaces.CLONE_NEWNS)
root = NewRoot(place)
for step in (MakeMountsPrivate(), MountRoot(2**20, 1024), MakeDirectory("/etc"), MakeDirectory("/etc/x")):
    step.execute(root)
root.trees["outer"] = mounts.open_tree(outer, recursive=False)
PlaceVolume("outer", "/vol", 0, 0, False).execute(root)
found = {"inside": 0, "refused": 0, "elsewhere": []}
before = set(open("/proc/self/mountinfo"))
while found["inside"] < enough or found["refused"] < 10 * enough:
    tree = mounts.open_tree(inner, recursive=False)
    root.trees["inner"], kept = tree, os.dup(tree)
    try:
        PlaceVolume("inner", "/vol/d/x", 0, 0, True).execute(root)
    except OSError:
        found["refused"] += 1
    else:
        (line,) = set(open("/proc/self/mountinfo")) - before
        point = line.split()[4]
        if point.startswith(f"{place}/vol/"):
            found["inside"] += 1
        else:
            found["elsewhere"].append(point)
        mounts.umount2(f"/proc/self/fd/{kept}", mounts.MNT_DETACH)
    os.close(kept)
print(json.dumps(found))
"""


@pytest.mark.threat("A03")
def test_a_mount_point_that_is_swapped_for_a_link_leads_nowhere(tmp_path: Path, data: Path) -> None:
    """Who shares the volume swaps without end, while another mounts in it hundreds of times: none lands anywhere else.

    It ends when many were refused and many were not. Who mounts here has not changed its root yet: were a link
    followed, it would be seen.
    """
    inner, place, outside = make(tmp_path / "inner"), tmp_path / "root", tmp_path / "outside"
    for directory in (place, data / "d", data / "d/x", outside, outside / "x"):
        directory.mkdir()
    before = host_mounts()
    targets = ["/etc", str(outside), f"{place}/etc", "../etc", "/proc/self/root/etc"]
    swapper = subprocess.Popen([sys.executable, "-c", SWAPPING, str(data), FOR_EVER, *targets])
    placing = [sys.executable, "-c", PLACING, str(place), str(data), str(inner), "300"]
    try:
        out = subprocess.run(placing, cwd=ROOT, check=True, capture_output=True, timeout=100 * SLOWNESS).stdout
    finally:
        swapper.kill()
        swapper.wait()
    found = json.loads(out)
    assert found["elsewhere"] == []
    assert host_mounts() == before
    assert names(outside / "x") == names(inner) == []


@pytest.mark.threat("A03")
def test_jobs_start_or_are_refused_while_their_mount_point_is_swapped(sandboxes: Sandboxes, data: Path) -> None:
    """Whole launches under the same attack: a job has its volume where it asked for it, or does not start."""
    inner = make(data.parent / "inner")
    (inner / "mine").touch()
    (data / "d/x").mkdir(parents=True)
    swapper = subprocess.Popen([sys.executable, "-c", SWAPPING, str(data), FOR_EVER, "/etc", "/proc", "/"])
    try:
        for _ in range(20):
            result = sandboxes.shell(
                "grep '/inner /' /proc/self/mountinfo | cut -d' ' -f5",
                prepared=(prepared(data, "/vol"), prepared(inner, "/vol/d/x")),
            )
            if result.exit["outcome"] == "not_started":
                assert result.exit["failure"]["path"] == "/vol/d/x"
            else:
                assert result.stdout in (b"/vol/d/x\n", b"/vol/d2/x\n")
    finally:
        swapper.kill()
        swapper.wait()


def test_a_failed_step_leaves_no_mount(sandboxes: Sandboxes, data: Path, limited: Path) -> None:
    """The second of two volumes cannot be placed: what was taken of the first goes with the job's processes."""
    launch = sandboxes.plan("true", prepared=(prepared(limited, "/limited"), prepared(data, "/vol/data")))
    steps = tuple(
        step._replace(path="/etc/passwd/x") if isinstance(step, PlaceVolume) and step.name == "data" else step
        for step in launch.task.operations
    )
    refused = failure(sandboxes.start_launch(with_task(launch, operations=steps)).result())
    assert "cannot be made" in refused["message"]


ROOTLESS = """
import sys
from pathlib import Path
from services.executor.rootless import own_identity
from tests.linux.sandboxes import Sandboxes, prepared
place = Path(sys.argv[1])
volumes = (
    prepared(place / "work", "/work"),
    prepared(place / "flags/one", "/data/one"),
    prepared(place / "flags/two", "/work/two", read_only=True),
)
script = (
    "cat /proc/self/mountinfo; echo mine >/work/f; echo mine >/data/one/f; echo x >/work/two/f;"
    "cp /usr/bin/id /work/id; chmod 6755 /work/id; /work/id -u >&2; stat -c %u:%g /work /data/one >&2"
)
with Sandboxes(place / "base", own_identity("")) as sandboxes:
    result = sandboxes.shell(script, prepared=volumes)
print(result.stdout.decode())
print(result.stderr.decode(), file=sys.stderr)
"""


def test_without_root_a_volume_is_bound_as_well() -> None:
    """In the user's own namespaces; what the host's mount forbids stays forbidden, and nosuid and nodev come on top."""
    place = Path(f"/tmp/{OWN_MARK}-volumes")  # the directories above tmp_path are closed to him
    flags = place / "flags"
    for directory in (place / "base", place / "work/two", flags):
        directory.mkdir(parents=True)
    mounts.mount("tmpfs", str(flags), "tmpfs", mounts.MS_NOEXEC, "size=1m")
    try:
        for name in ("one", "two"):
            (flags / name).mkdir()
        for path in (place, *place.rglob("*")):
            os.chown(path, UID, UID)
        command = as_user(sys.executable, "-c", ROOTLESS, str(place))
        done = subprocess.run(command, cwd=ROOT, capture_output=True, timeout=60 * SLOWNESS, check=False)
        written = (place / "work/f").read_text(), (flags / "one/f").read_text(), names(flags / "two")
    finally:
        mounts.umount2(str(flags), 0)
        subprocess.run(["/bin/rm", "-r", str(place)], check=True)
    lines = [line.split() for line in done.stdout.decode().splitlines() if line]
    options = {line[4]: set(line[5].split(",")) for line in lines}
    assert {"rw", "nosuid", "nodev", "noexec"} <= options["/data/one"], done.stderr
    assert {"ro", "nosuid", "nodev", "noexec"} <= options["/work/two"]
    assert {"rw", "nosuid", "nodev"} <= options["/work"]
    assert "noexec" not in options["/work"]
    assert written == ("mine\n", "mine\n", [])
    assert done.stderr.split()[-3:] == [b"1000", b"1000:1000", b"1000:1000"]
    assert b"Read-only file system" in done.stderr
