"""Volumes as their users see them: kept between jobs, bounded, private, and told truly."""

import json
import re
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.e2e.node import SERVICES, Node
from tests.e2e.volumes import MIB, create, free, inspect, names, remove, run, running, stop
from tests.leaks import mounts_below
from tests.waiting import SLOWNESS, wait_for

FILL = r"""
import os, sys
file = os.open(sys.argv[1], os.O_WRONLY | os.O_CREAT)
try:
    while True:
        os.write(file, b"x" * 4096)
except OSError as error:
    os.fsync(file)
    print(os.fstat(file).st_size, error.errno)
"""


def loops_of(node: Node) -> set[str]:
    """Images below the node's directory that have a loop device."""
    files = Path("/sys/block").glob("loop*/loop/backing_file")
    found = set()
    for file in files:
        try:
            backing = file.read_text().strip()
        except OSError:
            continue  # it is let go at this moment
        if backing.startswith(f"{node.base}/"):
            found.add(backing)
    return found


@pytest.mark.requirement("S1.3", "S1.6", "S1.7", "S1.21", "S1.23", "S1.25", "X11")
@pytest.mark.threat("B17")
def test_files_stay_from_job_to_job(node: Node) -> None:
    """A second job finds what the first left; inspect tells how much and who; removed and made anew it is empty."""
    identity = create(node, "kept", "16MB", "--label=team=ml")
    assert run(node, "kept", "cd /volumes/kept && echo s3cret-of-before > file && mkdir d && stat -c %u . file") == (
        b"1000\n1000\n"
    )
    assert run(node, "kept:/data/in/put", "cat /data/in/put/file; ls /data/in/put") == b"s3cret-of-before\nd\nfile\n"
    volume = free(node, "kept")
    assert (volume["id"], volume["type"], volume["size_bytes"]) == (identity, "filesystem", 16 * MIB)
    assert (volume["status"], volume["labels"], volume["shared"]) == ("available", {"team": "ml"}, False)
    assert volume["enforcement"] in ("image", "project-quota")
    last = node.jobs("--all", "--limit", "1")[0]
    assert volume["last_used_by"] == last["id"]
    assert last["volumes"] == [{"name": "kept", "path": "/data/in/put", "read_only": False}]
    assert names(node, "--filter=team=ml") == ["kept"]
    remove(node, "kept")
    assert "kept" not in names(node)
    create(node, "kept", "16MB")
    assert run(node, "kept", "ls -A /volumes/kept; grep -c s3cret /volumes/kept/* 2>/dev/null || true") == b""
    remove(node, "kept")


@pytest.mark.requirement("S1.15", "S1.16")
@pytest.mark.threat("C07")
@pytest.mark.parametrize("kind", ["filesystem", "memory"])
@pytest.mark.skipif(not Path("/usr/bin/python3").exists(), reason="needs /usr/bin/python3 for the probe")
def test_the_limit_is_the_size(node: Node, kind: str) -> None:
    """ENOSPC or EDQUOT within one block of the size; a reader of statvfs is told the same size."""
    create(node, f"full-{kind}", "8MB", f"--type={kind}")
    script = f"stat -f -c \"%a %S\" .; exec /usr/bin/python3 -I -c '{FILL}' file"
    out = run(node, f"full-{kind}:/v", script, "--workdir", "/v").split()
    assert int(out[0]) * int(out[1]) == 8 * MIB
    assert int(out[2]) in range(8 * MIB - 4096, 8 * MIB + 1), out
    assert int(out[3]) in (28, 122), out
    remove(node, f"full-{kind}")


@pytest.mark.threat("C07")
def test_inodes_are_bounded(node: Node) -> None:
    """Empty files take no blocks, but end too; the next job can remove them, and the volume is whole again."""
    create(node, "many", "4MB")
    script = "cd /volumes/many; i=0; while touch f$i; do i=$((i+1)); done 2>/dev/null; echo $i"
    count = int(run(node, "many", script))
    assert 100 < count < 70_000
    assert run(node, "many", "cd /volumes/many && find . -type f -delete && echo again > f && cat f") == b"again\n"
    remove(node, "many")


@pytest.mark.requirement("S1.38")
@pytest.mark.threat("A11")
def test_what_a_volume_cannot_do(node: Node) -> None:
    """Set-user-ID means nothing, device nodes cannot be made, `:ro` is read-only, and the host cannot reach it."""
    create(node, "flags")
    tried = "cp /usr/bin/id s && chmod 6755 s && ./s -u; mknod n c 1 3 2>&1; mount -t tmpfs n . 2>&1; true"
    out = run(node, "flags", f"cd /volumes/flags && {tried}").decode()
    assert out.startswith("1000\n")
    assert "permitted" in out
    out = run(node, "flags:/v:ro", "/v/s -u; echo x > /v/new; echo $?; grep ' /v ' /proc/self/mountinfo").decode()
    assert out.startswith("1000\n")
    assert re.search(r"^\d+ .* /v ro,nosuid,nodev", out, re.MULTILINE), out
    for directory in (node.base / "volumes").iterdir():
        assert directory.stat().st_mode & 0o077 == 0
        assert directory.stat().st_uid == 0
    remove(node, "flags")


@pytest.mark.requirement("S1.32", "S1.33", "X12")
def test_one_writer_or_many_readers(node: Node) -> None:
    """Who comes second is told which job has it; readers share; `--shared` volumes take several writers."""
    create(node, "one")
    writer = running(node, "one", "sleep 1000")
    refused = node.rnx("job", "run", "--volume", "one", "--", "true")
    assert refused.returncode == 4
    assert writer[:8] in refused.stderr.decode()
    assert node.rnx("job", "run", "--volume", "one:/x:ro", "--", "true").returncode == 4
    stop(node, writer)
    free(node, "one")
    readers = [running(node, "one:/x:ro", "sleep 1000") for _ in range(3)]
    assert [use["job_id"] for use in inspect(node, "one")["uses"]] == readers
    assert node.rnx("job", "run", "--volume", "one", "--", "true").returncode == 4
    stop(node, *readers)
    create(node, "all", "16MB", "--shared")
    writers = [running(node, "all", f"echo {n} > /volumes/all/{n}; sleep 1000") for n in range(3)]
    wait_for(lambda: run(node, "all:/a:ro", "ls /a").split() == [b"0", b"1", b"2"], timeout_s=20, what="all of them")
    stop(node, *writers)
    remove(node, "one", "all")


@pytest.mark.requirement("S1.24")
def test_removing_what_is_in_use(node: Node) -> None:
    """Refused with the job's id; with --force the job loses it, runs on, and nothing is left on the host."""
    create(node, "busy")
    job = running(node, "busy", "while sleep 0.1; do ls /volumes | wc -l; done")
    refused = node.rnx("volume", "remove", "busy")
    assert refused.returncode == 4
    assert job[:8] in refused.stderr.decode()
    assert "--force" in refused.stderr.decode()
    node.ok("volume", "remove", "busy", "--force")
    assert "busy" not in names(node)
    wait_for(
        lambda: [each["content"] for each in node.entries(job, "--tail", "1")] == ["0"],
        timeout_s=20,
        what="the job to lose it",
    )
    assert node.status(job)["volumes"] == []
    stop(node, job)
    wait_for(lambda: not any("busy" in each for each in loops_of(node)), what="the loop device to go")


@pytest.mark.requirement("S1.34", "S1.1", "S1.2", "S1.30", "X20")
@pytest.mark.threat("B16")
def test_another_owner_reaches_nothing(node: Node) -> None:
    """By name, id or path: the same words as for what does not exist. Each has names of his own."""
    secret = create(node, "data", "4MB", who="user")
    run(node, "data", "echo hers > /volumes/data/file", who="user")
    words = []
    for name in ("data", secret, "no-such"):
        for command in (("inspect",), ("remove", "--force"), ("detach", "--force")):
            arguments = (
                "volume",
                command[0],
                name,
                *(["6fa459ea-ee8a-4ca4-894e-db77e160355e"] if command[0] == "detach" else []),
            )
            done = node.rnx(*arguments, *command[1:], node="writer")
            assert done.returncode == 3, (arguments, done.stderr)
            words.append(done.stderr.decode().replace(name, "NAME"))
        refused = node.rnx("job", "run", "--volume", f"{name}:/x", "--", "true", node="writer")
        assert refused.returncode == 3, refused.stderr
    assert len(set(words)) <= 3, words
    assert "data" not in names(node, who="writer")
    create(node, "data", "4MB", who="writer")
    assert run(node, "data", "ls -A /volumes/data", who="writer") == b""
    assert inspect(node, secret)["owner"] != inspect(node, "data", who="writer")["owner"]  # an admin sees hers by id
    out = run(node, "data", "ls -d /var/lib/joblet /opt/joblet /volumes/../../opt 2>&1; ls /volumes", who="writer")
    assert out.splitlines()[-1] == b"data"
    remove(node, "data", who="writer")
    assert run(node, "data", "cat /volumes/data/file", who="user") == b"hers\n"
    remove(node, "data", who="user")


def test_readers_see_and_change_nothing(node: Node) -> None:
    """The role reader may list volumes and do nothing with them."""
    assert names(node, who="reader") == []
    refused = node.rnx("volume", "create", "mine", "--size=4MB", node="reader")
    assert refused.returncode == 4


@pytest.mark.requirement("S1.18")
@pytest.mark.threat("A03")
def test_a_volume_comes_to_a_running_job_and_leaves_it(node: Node) -> None:
    """It appears without a restart, takes what the job writes, is busy while it is used, and is gone after."""
    create(node, "hot")
    job = node.detached(
        "--", "/bin/sh", "-c",
        "until [ -d /volumes/hot ] && echo from-job > /volumes/hot/file; do sleep 0.05; done 2>/dev/null;"
        "cd /volumes/hot; echo wrote; until [ -e leave ]; do sleep 0.05; done; cd /; echo left; exec sleep 1000",
    )  # fmt: skip
    node.wait_for_state(job, "running")
    node.ok("volume", "attach", "hot", job)
    wait_for(lambda: [e["content"] for e in node.entries(job)] == ["wrote"], timeout_s=20, what="the job to write")
    assert node.status(job)["volumes"] == [{"name": "hot", "path": "/volumes/hot", "read_only": False}]
    assert node.rnx("volume", "attach", "hot", job, "--read-only").returncode == 4
    refused = node.rnx("volume", "detach", "hot", job)
    assert refused.returncode == 4
    assert "open" in refused.stderr.decode()
    mountinfo = Path(f"/proc/{node.status(job)['pid']}/mountinfo")
    assert " /volumes/hot rw,nosuid,nodev" in mountinfo.read_text()
    source = node.base / "volumes" / inspect(node, "hot")["id"] / "mount" / "data"
    (source / "leave").touch()
    wait_for(lambda: "left" in [e["content"] for e in node.entries(job)], timeout_s=20, what="the job to leave it")
    wait_for(lambda: node.rnx("volume", "detach", "hot", job).returncode == 0, timeout_s=10, what="the detach")
    assert "/volumes/hot" not in mountinfo.read_text()
    assert node.status(job)["volumes"] == []
    assert inspect(node, "hot")["status"] == "available"
    stop(node, job)
    assert run(node, "hot", "cat /volumes/hot/file") == b"from-job\n"
    remove(node, "hot")


@pytest.mark.requirement("S1.4", "S1.16", "S1.31", "X12")
@pytest.mark.threat("C06")
def test_a_memory_volume_is_empty_after_its_last_job(node: Node) -> None:
    """Made at mount, in memory, gone when the last job has left; the record stays until its time is over."""
    create(node, "quick", "4MB", "--type=memory", "--shared")
    first = running(node, "quick", "echo x > /volumes/quick/x; sleep 1000")
    wait_for(lambda: run(node, "quick", "ls /volumes/quick") == b"x\n", timeout_s=20, what="the file")
    stop(node, first)
    free(node, "quick")
    wait_for(
        lambda: not [each for each in mounts_below(node.base) if "volumes" in each and "tmpfs" in each], what="gone"
    )
    assert run(node, "quick", "ls -A /volumes/quick; stat -f -c %T /volumes/quick") == b"tmpfs\n"
    assert inspect(node, "quick")["enforcement"] == "tmpfs"
    remove(node, "quick")


@pytest.mark.requirement("S1.14")
def test_work_without_and_with_volumes(node: Node, tmp_path: Path) -> None:
    """1 MiB of tmpfs, or what --work-size says; a volume at /work takes the uploads."""
    size = 'echo $(($(stat -f -c "%b * %S" /work)))'
    assert node.ok("job", "run", "--", "/bin/sh", "-c", size) == b"%d\n" % MIB
    assert node.ok("job", "run", "--work-size", "3MB", "--", "/bin/sh", "-c", size) == b"%d\n" % (3 * MIB)
    too_large = node.rnx("job", "run", "--work-size", "100GB", "--", "true")
    assert too_large.returncode in (1, 2, 4)
    assert b"/work" in too_large.stderr
    (tmp_path / "input").write_text("uploaded\n")
    create(node, "home")
    run(node, "home:/work", "cat input; echo more >> input", "--upload", str(tmp_path / "input"))
    assert run(node, "home", "cat /volumes/home/input") == b"uploaded\nmore\n"
    remove(node, "home")


@pytest.mark.requirement("S1.12", "X11")
@pytest.mark.threat("D25")
@pytest.mark.parametrize("path", ["..", "/..", "/proc", "/proc/self", "/etc/x", "/", "/usr/x", "/dev", "/a/../b", "a"])
def test_paths_that_cannot_be(node: Node, path: str) -> None:
    """Refused by name, before anything is mounted."""
    if "paths" not in names(node):
        create(node, "paths", "4MB")
    before = mounts_below(node.base)
    refused = node.rnx("job", "run", "--volume", f"paths:{path}", "--", "true")
    assert refused.returncode in (1, 2), (path, refused.stderr)
    assert refused.stderr.count(b"\n") == 1
    assert mounts_below(node.base) <= before, "those of an earlier test may go meanwhile"


@pytest.mark.requirement("S1.17", "S1.37")
@pytest.mark.skipif(not Path("/usr/bin/python3").exists(), reason="needs /usr/bin/python3 for the probe")
def test_io_limits_hold_on_the_volume(node: Node) -> None:
    """4 MB past the page cache at 2 MB/s take two seconds, on the volume's own device."""
    create(node, "slow", "16MB")
    program = (
        "import mmap, os, time; f = os.open('/volumes/slow/f', os.O_WRONLY | os.O_CREAT | os.O_DIRECT);"
        "b = mmap.mmap(-1, 1 << 18); t = time.monotonic();"
        "[os.write(f, b) for _ in range(16)]; print(time.monotonic() - t)"
    )
    command = ("--", "/usr/bin/python3", "-I", "-c", program)
    took = float(node.ok("job", "run", "--volume", "slow", "--write-bps", "2MB", *command))
    assert 1.5 < took < 10 * SLOWNESS, took
    remove(node, "slow")


@pytest.mark.requirement("S1.17", "S1.37")
@pytest.mark.skipif(not Path("/usr/bin/python3").exists(), reason="needs /usr/bin/python3 for the probe")
def test_io_limits_hold_on_a_volume_that_came_later(node: Node) -> None:
    """The limits that a job began with extend to the device of what is attached to it."""
    create(node, "late", "16MB")
    program = (
        "import mmap, os, time\nwhile not os.path.isdir('/volumes/late'): time.sleep(0.05)\n"
        "f = os.open('/volumes/late/f', os.O_WRONLY | os.O_CREAT | os.O_DIRECT); b = mmap.mmap(-1, 1 << 18)\n"
        "t = time.monotonic(); [os.write(f, b) for _ in range(16)]; print(time.monotonic() - t)"
    )
    job = node.detached("--write-bps", "2MB", "--", "/usr/bin/python3", "-I", "-c", program)
    node.wait_for_state(job, "running")
    node.ok("volume", "attach", "late", job)
    took = float(node.ok("job", "log", job))
    assert 1.5 < took < 10 * SLOWNESS, took
    free(node, "late")
    remove(node, "late")


@pytest.mark.requirement("S1.49")
def test_everything_is_restarted_under_a_job(own_node: Callable[..., Node]) -> None:
    """Kill -9 of each service: the job keeps its volume, nobody else gets it, and it is free when the job has ended."""
    node = own_node()
    create(node, "held")
    job = running(
        node,
        "held",
        "n=0; while [ ! -e /volumes/held/stop ]; do n=$((n+1)); echo $n >> /volumes/held/n; sleep 0.1; done",
    )
    for service in SERVICES:
        node.kill(service)
    wait_for(lambda: node.rnx("volume", "inspect", "held").returncode == 0, timeout_s=30, what="an answer")
    assert [use["job_id"] for use in inspect(node, "held")["uses"]] == [job]
    assert node.rnx("job", "run", "--volume", "held", "--", "true").returncode == 4
    (node.base / "volumes" / inspect(node, "held")["id"] / "mount" / "data" / "stop").touch()
    node.wait_for_state(job, "completed")
    free(node, "held")
    lines = run(node, "held", "cat /volumes/held/n").split()
    assert lines == [b"%d" % n for n in range(1, len(lines) + 1)]
    node.stop()
    assert not [each for each in mounts_below(node.base) if each.startswith(f"{node.base}/")]
    wait_for(lambda: not loops_of(node), what="the loop devices to go")
    node.start()
    assert run(node, "held", "wc -l < /volumes/held/n").strip() == b"%d" % len(lines)
    remove(node, "held")
    assert not list((node.base / "volumes").iterdir())


@pytest.mark.requirement("S1.49", "S1.50")
def test_fifty_jobs_want_one_volume(node: Node) -> None:
    """Those that get it have it alone; the others are told; nothing is held when all are through."""
    create(node, "wanted")
    script = "cd /volumes/wanted; mkdir lock || exit 99; echo x >> taken; rmdir lock"
    jobs = [node.background("job", "run", "--volume", "wanted", "--", "/bin/sh", "-c", script) for _ in range(50)]
    codes = []
    for process in jobs:
        _, err = process.communicate(timeout=120 * SLOWNESS)
        codes.append(process.returncode)
        assert process.returncode in (0, 1, 4), err
    assert codes.count(0) >= 1
    free(node, "wanted")
    assert int(run(node, "wanted", "wc -l < /volumes/wanted/taken")) == codes.count(0)
    remove(node, "wanted")


@pytest.mark.requirement("S1.22", "S1.35", "S1.36", "S1.51")
def test_bounds_are_told(own_node: Callable[..., Node]) -> None:
    """Largest volume, number and bytes of an owner, share of the memory: each refusal names the bound."""
    bounds = {"size_bytes_max": 8 * MIB, "owner_count_max": 3, "owner_bytes_max": 20 * MIB}
    node = own_node({"joblet": {"volumes": bounds}})
    for size in ("16MB", "9000KB"):
        assert node.rnx("volume", "create", "large", f"--size={size}").returncode in (2, 4)
    assert node.rnx("volume", "create", "odd", "--size=1XB").returncode == 2
    for n in range(2):
        create(node, f"v{n}", "8MB")
    too_many_bytes = node.rnx("volume", "create", "v2", "--size=8Mi")
    assert too_many_bytes.returncode in (1, 4)
    create(node, "v2", "4Mi")
    refused = node.rnx("volume", "create", "v3", "--size=1MB")
    assert refused.returncode in (1, 4)
    assert b"3" in refused.stderr
    assert names(node) == ["v0", "v1", "v2"]


@pytest.mark.requirement("S1.22", "S1.23")
def test_what_is_printed(node: Node) -> None:
    """Table, JSON and YAML of the same volumes."""
    import yaml

    create(node, "shown", "5MB", "--label=a=b")
    objects = json.loads(node.ok("volume", "list", "--filter=a=b", "--format=json"))
    assert yaml.safe_load(node.ok("volume", "list", "--filter=a=b", "--format=yaml")) == objects
    table = node.ok("volume", "list", "--filter=a=b").decode()
    assert table.splitlines()[0].split()[:3] == ["NAME", "TYPE", "SIZE"]
    assert "shown" in table
    text = node.ok("volume", "inspect", "shown").decode()
    assert objects[0]["id"] in text
    remove(node, "shown")


def test_a_dry_run_names_the_mount(node: Node) -> None:
    """`rnx job run --dry-run` shows where the volume would be, and touches nothing."""
    create(node, "planned", "4MB")
    steps = node.ok("job", "run", "--dry-run", "--volume", "planned:/in:ro", "--", "true").decode()
    assert any("planned" in step and "/in" in step for step in steps.splitlines()), steps
    assert inspect(node, "planned")["metrics"]["mounts"] == 0
    remove(node, "planned")


def test_many_volumes_in_one_job(node: Node) -> None:
    """32 of them, each where it was asked for; none of them stays mounted for long."""
    for n in range(8):
        create(node, f"m{n}", "1MB")
    options = [option for n in range(1, 8) for option in ("--volume", f"m{n}")]
    assert run(node, "m0", "ls /volumes | wc -l", *options).strip() == b"8"
    began = time.monotonic()
    remove(node, *(f"m{n}" for n in range(8)))
    assert time.monotonic() - began < 60 * SLOWNESS
