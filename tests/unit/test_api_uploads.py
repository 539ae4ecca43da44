"""Uploads: what an entry may be, the archive that results, and whose it is."""

import asyncio
import io
import os
import tarfile
import threading
from collections.abc import AsyncIterator, Callable
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest

from common.config.layout import Layout, layout_of
from common.config.settings import Joblet, Settings, Uploads
from common.errors import JobletError, Reason
from common.messages.jobs import Upload
from proto.joblet.v1 import job_pb2
from services.api.uploads.entries import END, Tree, padding
from services.api.uploads.registry import UPLOADS_MAX, Registry
from services.api.uploads.staging import Staging
from tests.waiting import await_for

FILE, DIRECTORY, SYMLINK = job_pb2.UploadEntry.FILE, job_pb2.UploadEntry.DIRECTORY, job_pb2.UploadEntry.SYMLINK


def entry(path: str, kind: "job_pb2.UploadEntry.Kind" = FILE, **fields: object) -> job_pb2.UploadEntry:
    """An entry."""
    return job_pb2.UploadEntry(path=path, kind=kind, **fields)  # type: ignore[arg-type]  # checked by protobuf


def layout_at(base: Path) -> Layout:
    """The directories of a node."""
    layout = layout_of(Settings(joblet=Joblet(base_dir=str(base))))
    layout.uploads.mkdir()
    return layout


BAD = [
    entry(""),
    entry("/etc/passwd"),
    entry("a/../../b"),
    entry("./a"),
    entry("a//b"),
    entry("a/"),
    entry("a\0b"),
    entry("x" * 256),
    entry("/".join(["x" * 200] * 30)),
    entry("a", job_pb2.UploadEntry.KIND_UNSPECIFIED),
    entry("a", DIRECTORY, size_bytes=1),
    entry("a", FILE, target="b"),
    entry("a", SYMLINK),
    entry("a", SYMLINK, target="/etc/passwd"),
    entry("a", SYMLINK, target="../b"),
    entry("d/a", SYMLINK, target="../../b"),
    entry("a", SYMLINK, target="b\0"),
    entry("a", FILE, size_bytes=2**64 - 1),
]


@pytest.mark.threat("B19")
@pytest.mark.parametrize("bad", BAD, ids=range(len(BAD)))
def test_entries_that_could_leave_the_upload_are_refused(bad: job_pb2.UploadEntry) -> None:
    """Absolute, stepping up, NUL, overlong, of no kind, with a link outside: INVALID."""
    with pytest.raises(JobletError) as refused:
        Tree().add(bad)
    assert refused.value.reason is Reason.INVALID


@pytest.mark.threat("B19")
def test_nothing_goes_through_a_link_or_comes_twice() -> None:
    """An entry below a link or file, and a second one of the same path, are refused."""
    for first, second in (
        (entry("d", SYMLINK, target="e"), entry("d/x")),
        (entry("d"), entry("d/x")),
        (entry("d/x"), entry("d", DIRECTORY)),
        (entry("x"), entry("x")),
    ):
        tree = Tree()
        tree.add(first)
        with pytest.raises(JobletError):
            tree.add(second)


def test_the_archive_is_an_ordinary_tar() -> None:
    """Names of any length and alphabet, modes without setuid, owner 0, parents before children."""
    tree, long = Tree(), "é" * 100
    archive = tree.add(entry(f"d/{long}", size_bytes=3, mode=0o6755)) + b"abc" + padding(3)
    archive += tree.add(entry("d/link", SYMLINK, target=long)) + END
    with tarfile.open(fileobj=io.BytesIO(archive)) as tar:
        members = {member.name: member for member in tar.getmembers()}
        assert list(members) == ["d", f"d/{long}", "d/link"]
        assert members[f"d/{long}"].mode == 0o755
        assert {(member.uid, member.gid) for member in members.values()} == {(0, 0)}
        content = tar.extractfile(f"d/{long}")
        assert content is not None
        assert content.read() == b"abc"


async def stream(*parts: job_pb2.UploadEntry | bytes) -> AsyncIterator[job_pb2.UploadFilesRequest]:
    """A client's stream."""
    for part in parts:
        if isinstance(part, bytes):
            yield job_pb2.UploadFilesRequest(data=part)
        else:
            yield job_pb2.UploadFilesRequest(entry=part)


def receive(
    layout: Layout, bounds: Uploads, *parts: job_pb2.UploadEntry | bytes, registry: Registry | None = None
) -> Upload:
    """Stage an upload of ann."""
    return asyncio.run(Staging(registry or Registry(layout, bounds), bounds).receive("ann", stream(*parts)))


@pytest.mark.threat("C22")
@pytest.mark.parametrize(
    ("bounds", "parts", "reason"),
    [
        (Uploads(bytes_max=3), [entry("a", size_bytes=4)], Reason.EXHAUSTED),
        (Uploads(entries_max=2), [entry("a"), entry("b"), entry("c")], Reason.INVALID),
        (Uploads(staged_bytes_max=2000), [entry("a", size_bytes=2000), b"x" * 2000], Reason.EXHAUSTED),
        (Uploads(), [entry("a", size_bytes=2), b"x"], Reason.INVALID),
        (Uploads(), [entry("a", size_bytes=2), b"xxx"], Reason.INVALID),
        (Uploads(), [b"x"], Reason.INVALID),
        (Uploads(), [], Reason.INVALID),
    ],
)
def test_bounds_of_an_upload(
    tmp_path: Path, bounds: Uploads, parts: list[job_pb2.UploadEntry | bytes], reason: Reason
) -> None:
    """Bytes, entries, the total, sizes that do not match, data without a file: refused, and no file stays."""
    layout = layout_at(tmp_path)
    with pytest.raises(JobletError) as refused:
        receive(layout, bounds, *parts)
    assert refused.value.reason is reason
    assert list(layout.uploads.iterdir()) == []


def test_an_upload_at_its_bounds_is_taken(tmp_path: Path) -> None:
    """Exactly as many bytes and entries as allowed; the file is for its owner only."""
    layout = layout_at(tmp_path)
    upload = receive(layout, Uploads(bytes_max=3, entries_max=2), entry("a", size_bytes=3), b"ab", b"c", entry("b"))
    assert (upload.bytes, upload.entries) == (3, 2)
    path = layout.upload(upload.id)
    assert path.stat().st_mode & 0o777 == 0o600
    with tarfile.open(path) as tar:
        assert tar.getnames() == ["a", "b"]


def test_a_slow_upload_ends(tmp_path: Path) -> None:
    """The time of an upload is bounded; nothing stays."""
    layout = layout_at(tmp_path)

    async def stalled() -> AsyncIterator[job_pb2.UploadFilesRequest]:
        yield job_pb2.UploadFilesRequest(entry=entry("a", size_bytes=3))
        await asyncio.Event().wait()

    bounds = Uploads(duration_ms_max=50)
    with pytest.raises(JobletError) as refused:
        asyncio.run(Staging(Registry(layout, bounds), bounds).receive("ann", stalled()))
    assert refused.value.reason is Reason.DEADLINE
    assert list(layout.uploads.iterdir()) == []


class Held(ThreadPoolExecutor):
    """Threads that wait at the beginning of their work, as on a slow disk, from `hold` until `let_go`."""

    def __init__(self) -> None:
        super().__init__(1)
        self.entered = threading.Event()
        self._may_go = threading.Event()
        self._may_go.set()

    def hold(self) -> None:
        """What begins from now on waits."""
        self.entered.clear()
        self._may_go.clear()

    def let_go(self) -> None:
        """Go on."""
        self._may_go.set()

    def submit(self, work: Callable[..., Any], /, *arguments: Any, **named: Any) -> Future[Any]:
        """See ThreadPoolExecutor."""

        def held() -> Any:
            self.entered.set()
            assert self._may_go.wait(30)
            return work(*arguments, **named)

        return super().submit(held)


def open_files() -> int:
    """How many descriptors this process has."""
    return len(list(Path("/proc/self/fd").iterdir()))


@pytest.mark.parametrize("during", ["open", "write"])
def test_a_client_that_leaves_while_the_disk_is_slow(tmp_path: Path, during: str) -> None:
    """Cancelled, and cancelled again: no file or descriptor stays, and nothing is written to who has that next."""
    layout = layout_at(tmp_path)
    at_disk, go_on = asyncio.Event(), asyncio.Event()

    async def parts() -> AsyncIterator[job_pb2.UploadFilesRequest]:
        yield job_pb2.UploadFilesRequest(entry=entry("a", size_bytes=2**21))
        at_disk.set()
        await go_on.wait()
        yield job_pb2.UploadFilesRequest(data=b"x" * 2**21)

    async def scenario() -> None:
        threads = Held()
        asyncio.get_running_loop().set_default_executor(threads)
        before = open_files()
        if during == "open":
            threads.hold()
        receiving = asyncio.create_task(Staging(Registry(layout, Uploads()), Uploads()).receive("ann", parts()))
        if during == "write":
            await at_disk.wait()
            threads.hold()
            go_on.set()
        await await_for(threads.entered.is_set, what="the disk to be slow")
        for _ in range(3):
            receiving.cancel()
            await asyncio.sleep(0.01)
        with (tmp_path / "other").open("wb") as other:  # has the descriptor's number, if that was given back
            threads.let_go()
            await asyncio.wait({receiving})
            await asyncio.to_thread(os.fsync, other.fileno())  # behind what the one thread had to do
        assert receiving.cancelled()
        assert (tmp_path / "other").read_bytes() == b""
        assert list(layout.uploads.iterdir()) == []
        assert open_files() == before

    asyncio.run(scenario())


class Clock:
    """A clock that the test moves."""

    def __init__(self) -> None:
        self.now_s = 0.0

    def __call__(self) -> float:
        """The present time."""
        return self.now_s


def test_an_upload_belongs_to_its_owner_and_to_one_job(tmp_path: Path) -> None:
    """Another's id and an unknown one are refused alike; after a job took it only the same key finds it again."""
    layout = layout_at(tmp_path)
    registry = Registry(layout, Uploads())
    upload = receive(layout, Uploads(), entry("a"), registry=registry)
    refusals = []
    for owner, upload_id in (("bob", upload.id), ("ann", "0" * 32)):
        with pytest.raises(JobletError) as refused:
            registry.lend(owner, "").take(upload_id)
        refusals.append((refused.value.reason, str(refused.value)))
    assert refusals[0] == refusals[1]
    with registry.lend("ann", "key") as loan:
        assert loan.take(upload.id) == upload
        loan.keep([upload])
    with registry.lend("ann", "key") as again:
        assert again.take(upload.id) == upload
    for key in ("", "other"):
        with pytest.raises(JobletError):
            registry.lend("ann", key).take(upload.id)


def test_an_upload_is_one_runs_before_it_is_a_jobs(tmp_path: Path) -> None:
    """Between the check and the executor's answer nobody else gets it, nor does its time end; refused, it is free."""
    layout, clock = layout_at(tmp_path), Clock()
    registry = Registry(layout, Uploads(unused_ms_max=5000), clock=clock)
    upload = receive(layout, Uploads(), entry("a"), registry=registry)
    with registry.lend("ann", "key") as asked:
        asked.take(upload.id)
        for key in ("", "other"):
            with pytest.raises(JobletError), registry.lend("ann", key) as another:
                another.take(upload.id)
        with registry.lend("ann", "key") as again:
            assert again.take(upload.id) == upload
        clock.now_s = 5.0
        registry.begin("bob")
        assert layout.upload(upload.id).exists()
    clock.now_s = 4.0
    with registry.lend("ann", "") as free:
        assert free.take(upload.id) == upload
        free.keep([upload])
    with pytest.raises(JobletError), registry.lend("ann", "") as late:
        late.take(upload.id)


def test_what_nobody_took_goes_when_its_time_is_over(tmp_path: Path) -> None:
    """Own uploads and what an earlier process left are removed after the same time, and count until then."""
    layout, clock = layout_at(tmp_path), Clock()
    layout.upload("f" * 32).write_bytes(b"x" * 1000)
    bounds = Uploads(unused_ms_max=5000, staged_bytes_max=3000)
    registry = Registry(layout, bounds, clock=clock)
    registry.adopt()
    with pytest.raises(JobletError):
        receive(layout, bounds, entry("a", size_bytes=2000), b"x" * 2000, registry=registry)
    receive(layout, bounds, entry("a"), registry=registry)
    clock.now_s = 4.9
    registry.begin("bob")
    assert len(list(layout.uploads.iterdir())) == 2
    clock.now_s = 5.0
    registry.begin("bob")
    assert list(layout.uploads.iterdir()) == []


def test_one_owner_cannot_fill_the_registry(tmp_path: Path) -> None:
    """Beyond the bound of one owner he is refused and others are not."""
    registry = Registry(layout_at(tmp_path), Uploads())
    for _ in range(100):
        registry.begin("ann")
    with pytest.raises(JobletError) as refused:
        registry.begin("ann")
    assert refused.value.reason is Reason.EXHAUSTED
    registry.begin("bob")


def test_uploads_that_jobs_have_are_in_nobodys_way(tmp_path: Path) -> None:
    """They are remembered for who asks again by his key, and are none of those that wait: others may stage more."""
    registry = Registry(layout_at(tmp_path), Uploads())
    latest = ""
    for number in range(3 * UPLOADS_MAX):
        latest, _ = registry.begin("ann")
        registry.complete(latest, Upload(id=latest, bytes=0, entries=1))
        with registry.lend("ann", str(number)) as loan:
            loan.keep([loan.take(latest)])
    registry.begin("bob")
    assert registry.lend("ann", str(3 * UPLOADS_MAX - 1)).take(latest).id == latest
    assert registry.known <= 2 * UPLOADS_MAX


def test_what_cannot_be_removed_stops_nobody(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """A disk that went read-only, or something else of that name: it is told once, and uploads go on."""
    layout, clock = layout_at(tmp_path), Clock()
    layout.upload("f" * 32).mkdir()
    registry = Registry(layout, Uploads(), clock=clock)
    registry.adopt()
    clock.now_s = 10**6
    for _ in range(2):
        registry.begin("bob")
    assert capsys.readouterr().out.count("cannot be removed") == 1
