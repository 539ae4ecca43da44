"""`rnx volume …`: what is sent, what is printed to the letter, exit codes, and archives that are whole or not there."""

import json
import os
import signal
import subprocess
from collections.abc import Iterator
from pathlib import Path

import grpc
import pytest
import yaml

from cli.client.views import volume_object
from proto.joblet.v1 import volume_pb2
from tests.contract.rnx_fake_node import REPOSITORY, FakeNode, environment, fake_node
from tests.contract.rnx_fake_volumes import USED, Refusal
from tests.waiting import SLOWNESS, wait_for

ID = "00000001-0000-4000-8000-000000000000"
OTHER = "00000002-0000-4000-8000-000000000000"
VOLUME_ID = "00000001-0000-4000-8000-00000000000a"
KEYS = [
    *("id", "name", "type", "size_bytes", "status", "created_at", "last_used", "current_job_id", "owner", "labels"),
    *("enforcement", "shared", "encryption", "used_bytes", "used_inodes", "inodes", "uses", "last_used_by", "reason"),
    *("origin", "snapshots", "metrics"),
]
CONTENT = [bytes(range(256)) * 512, b"end"]


@pytest.fixture
def node(tmp_path: Path) -> Iterator[FakeNode]:
    """A node of this test alone."""
    with fake_node(tmp_path) as served:
        yield served


def full(node: FakeNode) -> volume_pb2.Volume:
    """A volume of which everything is known."""
    return node.volumes.add(
        "data",
        status="in use",
        reason="nearly full",
        last_used=USED,
        current_job_id=ID,
        labels={"team": "ml", "app": "web"},
        shared=True,
        encryption="dm-crypt",
        used_bytes=2**29,
        used_inodes=11,
        inodes=65536,
        uses=[
            volume_pb2.VolumeUse(job_id=ID, path="/data", since=USED),
            volume_pb2.VolumeUse(job_id=OTHER, path="/volumes/data", read_only=True),
        ],
        last_used_by=OTHER,
        origin="old@before",
        snapshots=2,
        metrics=volume_pb2.VolumeMetrics(
            mounts=3,
            mount_us=12_345,
            unmounts=2,
            unmount_us=600,
            read_bytes=2048,
            read_ops=3,
            write_bytes=0,
            write_ops=1,
        ),
    )


@pytest.mark.requirement("S1.21")
@pytest.mark.requirement("S1.51")
def test_create(node: FakeNode) -> None:
    """Every option reaches the node; the id is printed, or all of the volume."""
    words = "create data --size=100Mi --type=memory --label=team=ml --label a=b --shared --advisory --encrypt"
    outcome = node.rnx("volume", *words.split())
    assert outcome == (0, f"{VOLUME_ID}\n".encode(), "")
    assert node.volumes.requests == [
        volume_pb2.CreateVolumeRequest(
            name="data",
            type=volume_pb2.MEMORY,
            size_bytes=100 * 2**20,
            labels={"team": "ml", "a": "b"},
            shared=True,
            advisory=True,
            encrypted=True,
        )
    ]
    created = json.loads(node.rnx("volume", "create", "other", "--size", "10KB", "--json").out)
    assert (created["name"], created["size_bytes"], created["type"]) == ("other", 10240, "filesystem")
    assert [*created] == KEYS


@pytest.mark.parametrize(
    ("words", "told"),
    [
        ("create data", "Missing option '--size'"),
        ("create data --size=1.5GB", "malformed size"),
        ("create data --size=-1", "malformed size"),
        ("create ../x --size=1GB", "malformed volume name '../x'"),
        ("create data --size=1GB --type=disk", "'disk' is not one of"),
        ("create data --size=1GB --label=x", "is not KEY=VALUE"),
        ("list --limit=0", "--limit"),
        ("remove", "Missing argument 'NAME...'"),
        (f"attach data {ID}:data", "malformed place"),
        (f"attach data {ID}:/data:wo", "malformed place"),
        ("attach data x", "malformed job id"),
        ("clone data@ new", "malformed name 'data@'"),
        ("clone @s new", "malformed name '@s'"),
        ("snapshot create data --as a/b", "malformed snapshot name"),
        ("export data@x@y file", "malformed snapshot name"),
        ("import data /nowhere/data.tar", "cannot read /nowhere/data.tar"),
        ("import data /", "/ is a directory"),
    ],
)
def test_usage(node: FakeNode, words: str, told: str) -> None:
    """What cannot be meant is refused here, in one line, with exit code 2; the node is not asked."""
    node.volumes.add("data")
    outcome = node.rnx("volume", *words.split())
    assert (outcome.code, outcome.out) == (2, b"")
    assert told in outcome.err
    assert outcome.err.count("\n") == 1
    assert node.volumes.imported is None


@pytest.mark.requirement("S1.22")
@pytest.mark.threat("B11")
def test_list(node: FakeNode) -> None:
    """The table to the letter, over several pages; json and yaml hold the same; filters reach the node."""
    full(node)
    node.volumes.add("m", type=volume_pb2.MEMORY, size_bytes=1024, enforcement="tmpfs", labels={"team": "ml"})
    node.volumes.add("z", owner="bob")
    outcome = node.rnx("volume", "list")
    assert outcome.err == ""
    assert outcome.out.decode() == (
        "NAME  TYPE        SIZE     USED       STATUS     QUOTA  CREATED               JOB\n"
        f"data  filesystem  1.0 GiB  512.0 MiB  in use     image  2023-11-14T22:13:20Z  {ID}\n"
        "m     memory      1.0 KiB  0 B        available  tmpfs  2023-11-14T22:13:20Z\n"
        "z     filesystem  1.0 GiB  0 B        available  image  2023-11-14T22:13:20Z\n"
    )
    assert [request.page_token for request in node.volumes.requests] == ["", "2"]  # type: ignore[attr-defined]
    expected = [volume_object(volume) for volume in node.volumes.volumes.values()]
    for words in (("--json",), ("--format=json",)):
        assert json.loads(node.rnx("volume", "list", *words).out) == expected
    assert yaml.safe_load(node.rnx("volume", "list", "--format", "yaml").out) == expected
    assert all([*entry] == KEYS for entry in expected)
    node.volumes.requests.clear()
    outcome = node.rnx("volume", "list", "--filter=team=ml", "--filter", "a=b", "--all", "--owner=bob", "--limit=1")
    assert outcome.out.decode().splitlines()[0].split()[:3] == ["NAME", "OWNER", "TYPE"]
    assert outcome.out.count(b"\n") == 2
    assert node.volumes.requests == [
        volume_pb2.ListVolumesRequest(labels={"team": "ml", "a": "b"}, page_size=1, owner="bob", all=True)
    ]
    node.volumes.volumes.clear()
    assert node.rnx("volume", "list").out == b"NAME  TYPE  SIZE  USED  STATUS  QUOTA  CREATED  JOB\n"
    assert node.rnx("volume", "list", "--json").out == b"[]\n"


@pytest.mark.requirement("S1.23")
@pytest.mark.requirement("S1.42")
def test_inspect(node: FakeNode) -> None:
    """Everything, in words and as stable keys; what is not known is left out, or null."""
    full(node)
    assert node.rnx("volume", "inspect", "data").out.decode() == (
        f"id:               {VOLUME_ID}\n"
        "name:             data\n"
        "owner:            alice\n"
        "type:             filesystem\n"
        "status:           in use: nearly full\n"
        "size:             1.0 GiB\n"
        "used:             512.0 MiB (50.0 %)\n"
        "inodes:           11 of 65536 (0.0 %)\n"
        "size is enforced: by the kernel: a file system of its own in an image\n"
        "shared:           yes: several jobs at once may write\n"
        "encryption:       dm-crypt\n"
        "labels:           app=web, team=ml\n"
        "made from:        old@before\n"
        "snapshots:        2\n"
        "created:          2023-11-14T22:13:20.25Z\n"
        f"last used:        2023-11-14T22:15:00Z by job {OTHER}\n"
        f"used by:          job {ID} at /data, since 2023-11-14T22:15:00Z\n"
        f"used by:          job {OTHER} at /volumes/data, read-only\n"
        "mounts:           3, the last in 12.3 ms\n"
        "unmounts:         2, the last in 0.6 ms\n"
        "read:             2.0 KiB in 3 operations\n"
        "written:          0 B in 1 operations\n"
    )
    shown = json.loads(node.rnx("volume", "inspect", "data", "--json").out)
    assert [*shown] == KEYS
    assert shown["uses"] == [
        {"job_id": ID, "path": "/data", "read_only": False, "since": "2023-11-14T22:15:00Z"},
        {"job_id": OTHER, "path": "/volumes/data", "read_only": True, "since": None},
    ]
    assert shown["metrics"] == {
        **{"mounts": 3, "mount_us": 12345, "unmounts": 2, "unmount_us": 600},
        **{"read_bytes": 2048, "write_bytes": 0, "read_ops": 3, "write_ops": 1},
    }
    assert (shown["labels"], shown["inodes"], shown["encryption"]) == ({"team": "ml", "app": "web"}, 65536, "dm-crypt")
    node.volumes.add("bare", enforcement="advisory")
    bare = node.rnx("volume", "inspect", "bare").out.decode()
    assert "size is enforced: not enforced: measured from time to time, and told\n" in bare
    assert not {"inodes:", "used by:", "mounts:", "last used:", "encryption:"} & {*bare.split()}
    shown = json.loads(node.rnx("volume", "inspect", "bare", "--json").out)
    assert [shown[key] for key in ("last_used", "inodes", "encryption", "origin", "current_job_id")] == [None] * 5


@pytest.mark.threat("C20")
def test_what_others_chose_cannot_move_the_cursor(node: FakeNode) -> None:
    """Names, labels, reasons: control characters are written out in every view."""
    node.volumes.add("data", reason="\x1b[2J", labels={"a": "\x1b]0;x\x07"}, owner="\x9bx")
    for words in (("inspect", "data"), ("list", "--all"), ("list", "--format=yaml"), ("list", "--json")):
        out = node.rnx("volume", *words).out
        assert not {b"\x1b", b"\x07", b"\xc2\x9b"} & {bytes([byte]) for byte in out}, words
        assert b"\xc2\x9b" not in out


@pytest.mark.requirement("S1.24")
def test_remove(node: FakeNode) -> None:
    """One or several; what is refused is told beside what was done, and a single refusal is the command's own."""
    for name in ("a", "b", "c"):
        node.volumes.add(name)
    node.volumes.refusals["b"] = Refusal(
        grpc.StatusCode.FAILED_PRECONDITION, f"volume b is in use by job {ID}", "stop the job, or give --force"
    )
    outcome = node.rnx("volume", "remove", "a", "b", "nothing", "c", "--force")
    assert outcome.out == b"a\nc\n"
    assert outcome.err == (
        f"rnx: b: volume b is in use by job {ID}: stop the job, or give --force\n"
        "rnx: nothing: no such volume: rnx volume list shows them\n"
    )
    assert outcome.code == 3
    assert all(request.force for request in node.volumes.of(volume_pb2.DeleteVolumeRequest))
    outcome = node.rnx("volume", "remove", "b")
    told = f"rnx: volume b is in use by job {ID}: stop the job, or give --force\n"
    assert outcome == (4, b"", told)
    node.volumes.refusals.clear()
    assert node.rnx("volume", "remove", "b", "--json").out == b'[{"name":"b"}]\n'


@pytest.mark.requirement("S1.18")
def test_attach_and_detach(node: FakeNode) -> None:
    """JOB[:/PATH][:ro]; the answer says where it is, and who else has it."""
    node.volumes.add("data")
    outcome = node.rnx("volume", "attach", "data", f"{ID}:/data:ro")
    assert outcome.out.decode() == f"data is at /data in job {ID}, read-only\n"
    outcome = node.rnx("volume", "attach", "data", OTHER)
    assert outcome.out.decode() == f"data is at /volumes/data in job {OTHER}\n"
    assert node.volumes.requests == [
        volume_pb2.AttachVolumeRequest(name="data", job_id=ID, path="/data", read_only=True),
        volume_pb2.AttachVolumeRequest(name="data", job_id=OTHER),
    ]
    node.rnx("volume", "attach", "--read-only", "data", OTHER)
    assert node.volumes.requests[2] == volume_pb2.AttachVolumeRequest(name="data", job_id=OTHER, read_only=True)
    assert node.rnx("volume", "detach", "data", ID, "--force").out == b"data is used by 2 other jobs\n"
    assert node.volumes.requests[3] == volume_pb2.DetachVolumeRequest(name="data", job_id=ID, force=True)
    assert node.rnx("volume", "detach", "data", OTHER).out == b"data is used by no job\n"
    assert json.loads(node.rnx("volume", "detach", "data", ID, "--json").out)["uses"] == []


def test_resize_and_clone(node: FakeNode) -> None:
    """The new size, the new id."""
    node.volumes.add("data")
    assert node.rnx("volume", "resize", "data", "--size=2GB").out == b"data 2.0 GiB\n"
    assert json.loads(node.rnx("volume", "resize", "data", "--size=3GB", "--json").out)["size_bytes"] == 3 * 2**30
    cloned = node.rnx("volume", "clone", "data@before", "copy", "--label=a=b")
    assert cloned.out.decode() == f"{node.volumes.volumes['copy'].id}\n"
    assert node.volumes.requests[-1] == volume_pb2.CloneVolumeRequest(
        volume="data", snapshot="before", name="copy", labels={"a": "b"}
    )
    assert json.loads(node.rnx("volume", "clone", "data", "more", "--json").out)["name"] == "more"


@pytest.mark.requirement("S1.45")
def test_snapshots(node: FakeNode) -> None:
    """Create, list, restore, remove: a name or the time, a table to the letter, stable keys."""
    node.volumes.add("data")
    assert node.rnx("volume", "snapshot", "create", "data", "--as", "before").out == b"before\n"
    assert node.rnx("volume", "snapshot", "create", "data").out == b"20260102T030405Z\n"
    assert node.rnx("volume", "snapshot", "list", "data").out.decode() == (
        "NAME              CREATED               SIZE     METHOD\n"
        "before            2023-11-14T22:13:20Z  1.0 GiB  reflink\n"
        "20260102T030405Z  2023-11-14T22:13:20Z  1.0 GiB  reflink\n"
    )
    first, _ = json.loads(node.rnx("volume", "snapshot", "list", "data", "--json").out)
    assert first == {
        "id": "00000001-0000-4000-8000-00000000000b",
        "name": "before",
        "volume": "data",
        "created_at": "2023-11-14T22:13:20.25Z",
        "size_bytes": 2**30,
        "method": "reflink",
    }
    assert node.rnx("volume", "snapshot", "restore", "data", "before").out == b"data is as before was\n"
    assert node.rnx("volume", "snapshot", "remove", "data", "before").out == b"before\n"
    assert json.loads(node.rnx("volume", "snapshot", "remove", "data", "x", "--json").out) == {
        "volume": "data",
        "name": "x",
    }


@pytest.mark.parametrize(
    ("code", "expected"),
    [
        (grpc.StatusCode.NOT_FOUND, 3),
        (grpc.StatusCode.PERMISSION_DENIED, 4),
        (grpc.StatusCode.FAILED_PRECONDITION, 4),
        (grpc.StatusCode.ALREADY_EXISTS, 4),
        (grpc.StatusCode.RESOURCE_EXHAUSTED, 4),
        (grpc.StatusCode.UNIMPLEMENTED, 4),
        (grpc.StatusCode.DATA_LOSS, 1),
    ],
)
def test_refusals_are_one_line_with_the_repair(node: FakeNode, code: grpc.StatusCode, expected: int) -> None:
    """What went wrong, what to do; the exit code says which kind it was."""
    node.volumes.add("data")
    for method, words in (
        ("CreateVolume", ("create", "data", "--size=1GB")),
        ("ExportVolume", ("export", "data")),
        ("ImportVolume", ("import", "data")),
    ):
        node.volumes.refusals = {method: Refusal(code, "it cannot be", "do this")}
        assert node.rnx("volume", *words) == (expected, b"", "rnx: it cannot be: do this\n"), words


@pytest.mark.requirement("S1.45")
def test_export_to_a_file(node: FakeNode, tmp_path: Path) -> None:
    """Whole, under its name alone; one that is there stays, unless --force; links are followed."""
    node.volumes.add("data")
    node.volumes.content = CONTENT
    (tmp_path / "out").mkdir()
    file = tmp_path / "out" / "data.tar"
    outcome = node.rnx("volume", "export", "data@before", str(file))
    assert outcome == (0, f"{file}: 128.0 KiB\n".encode(), "")
    assert file.read_bytes() == b"".join(CONTENT)
    assert node.volumes.requests == [volume_pb2.ExportVolumeRequest(volume="data", snapshot="before")]
    umask = os.umask(0o022)
    os.umask(umask)
    assert file.stat().st_mode & 0o777 == 0o666 & ~umask
    file.write_bytes(b"mine")
    outcome = node.rnx("volume", "export", "data", str(file))
    told = f"rnx: there is a file {file} already: name another one, or give --force\n"
    assert (outcome, file.read_bytes()) == ((4, b"", told), b"mine")
    assert len(node.volumes.requests) == 1
    link = tmp_path / "link"
    link.symlink_to(file)
    shown = json.loads(node.rnx("volume", "export", "data", str(link), "--force", "--json").out)
    assert (shown, file.read_bytes()) == ({"file": str(link), "bytes": 131075}, b"".join(CONTENT))
    assert link.is_symlink()
    for odd in ("/dev/null", str(tmp_path)):
        outcome = node.rnx("volume", "export", "data", odd, "--force")
        assert (outcome.code, outcome.err) == (4, f"rnx: {odd} is no regular file: write to stdout instead: -\n")
    assert Path("/dev/null").is_char_device()
    outcome = node.rnx("volume", "export", "data", "/proc/nowhere/x")
    assert (outcome.code, outcome.err.count("\n")) == (1, 1)
    assert [*file.parent.iterdir()] == [file]


def test_export_to_stdout_and_what_fails(node: FakeNode, tmp_path: Path) -> None:
    """The bytes and nothing else; not to a terminal; an export that breaks off leaves no FILE, and fails."""
    node.volumes.add("data")
    node.volumes.content = CONTENT
    for words in ((), ("-",), ("-", "--json")):
        assert node.rnx("volume", "export", "data", *words) == (0, b"".join(CONTENT), "")
    leader, follower = os.openpty()
    process = node.start("volume", "export", "data", stdout=follower)
    os.close(follower)
    _, err = process.communicate(timeout=30)
    os.close(leader)
    assert process.returncode == 2
    assert err.startswith(b"rnx: a tar archive is nothing for a terminal")
    node.volumes.breaks_off = True
    file = tmp_path / "empty" / "data.tar"
    file.parent.mkdir()
    outcome = node.rnx("volume", "export", "data", str(file))
    assert outcome == (1, b"", "rnx: the volume cannot be read: restore a snapshot\n")
    assert [*file.parent.iterdir()] == []
    node.volumes.breaks_off = False
    with node.start("volume", "export", "data", stdout=subprocess.PIPE) as reader:
        assert reader.stdout is not None
        reader.stdout.close()
        assert reader.wait(30) in {0, 141}  # all of it may have fitted into the pipe


@pytest.mark.parametrize("number", [signal.SIGINT])
def test_an_interrupted_export_leaves_nothing(node: FakeNode, tmp_path: Path, number: int) -> None:
    """Ctrl-C: exit code 130, no line, no FILE, no part of it; the node learns at once that nobody listens."""
    node.volumes.add("data")
    node.volumes.content = CONTENT
    node.volumes.gate.clear()
    file = tmp_path / "empty" / "data.tar"
    file.parent.mkdir()
    process = node.start("volume", "export", "data", str(file))
    wait_for(lambda: any(one.stat().st_size for one in file.parent.iterdir()), what="a part of the file")
    process.send_signal(number)
    out, err = process.communicate(timeout=30)
    assert (process.returncode, out, err) == (130, b"", b"")
    assert [*file.parent.iterdir()] == []
    assert node.volumes.gone.wait(10 * SLOWNESS)


@pytest.mark.requirement("S1.45")
def test_import(node: FakeNode, tmp_path: Path) -> None:
    """From a file and from stdin, byte for byte; the answer says how full the volume is."""
    node.volumes.add("data")
    content = os.urandom(700_000)
    file = tmp_path / "data.tar"
    file.write_bytes(content)
    outcome = node.rnx("volume", "import", "data", str(file))
    assert outcome == (0, b"data: 683.6 KiB of 1.0 GiB are used\n", "")
    assert node.volumes.imported == content
    for words in ((), ("-",)):
        node.volumes.imported = None
        with file.open("rb") as stdin:
            process = node.start("volume", "import", "data", "--json", *words, stdin=stdin)
            out, _ = process.communicate(timeout=30)
        assert (process.returncode, json.loads(out)["used_bytes"]) == (0, 700_000)
        assert node.volumes.imported == content
    leader, follower = os.openpty()
    process = node.start("volume", "import", "data", stdin=follower)
    os.close(follower)
    _, err = process.communicate(timeout=30)
    os.close(leader)
    assert (process.returncode, err[:31]) == (2, b"rnx: a tar archive is not typed")


def test_an_interrupted_import_is_none(node: FakeNode) -> None:
    """Ctrl-C while stdin has more to come: exit code 130, no line; the node sees a call that was left, and no end."""
    node.volumes.add("data")
    process = node.start("volume", "import", "data", stdin=subprocess.PIPE)
    assert process.stdin is not None
    process.stdin.write(b"x" * 1000)
    process.stdin.flush()
    assert node.volumes.begun.wait(20)
    process.send_signal(signal.SIGINT)
    assert process.wait(30) == 130
    out, err = process.communicate(timeout=30)
    assert (out, err) == (b"", b"")
    assert node.volumes.gone.wait(10 * SLOWNESS)
    assert node.volumes.imported is None


def test_an_import_that_is_refused_does_not_wait_for_its_input(node: FakeNode) -> None:
    """The node says no while stdin is open and silent: the command ends."""
    process = node.start("volume", "import", "nothing", stdin=subprocess.PIPE)
    assert process.wait(30) == 3
    _, err = process.communicate(timeout=30)
    assert err == b"rnx: no such volume: rnx volume list shows them\n"


def test_an_input_that_cannot_be_read_to_its_end_is_no_import(node: FakeNode) -> None:
    """Reading fails in the middle: the node gets no end, the user one line."""
    node.volumes.add("data")
    outcome = node.rnx("volume", "import", "data", "/proc/self/mem")  # nothing is at 0
    assert (outcome.code, outcome.err) == (2, "rnx: cannot read /proc/self/mem: Input/output error\n")
    assert node.volumes.imported is None


@pytest.mark.parametrize("words", ["rnx volume inspect d", "rnx volume remove other d", "rnx run --volume d"])
def test_names_are_completed(node: FakeNode, words: str) -> None:
    """A shell gets the volumes that the node knows, those that begin so; from a node that is away it gets none.

    And none from one that is slow, as the user's line waits: then he asks again.
    """
    for name in ("data", "docs", "other"):
        node.volumes.add(name)

    def proposed() -> list[str]:
        typed = words.replace("rnx", f"rnx --config {node.config}", 1)
        variables = environment() | {"_RNX_COMPLETE": "bash_complete", "COMP_WORDS": typed}
        variables["COMP_CWORD"] = str(len(typed.split()) - 1)
        command = node.command()[:3]
        answer = subprocess.run(command, cwd=REPOSITORY, env=variables, capture_output=True, check=True, timeout=30)
        assert answer.stderr == b""
        return [line.partition(",")[2] for line in answer.stdout.decode().splitlines() if line]

    assert wait_for(proposed, timeout_s=30, what="proposals") == ["data", "docs"]
    node.stop()
    assert proposed() == []
    node.serve()
