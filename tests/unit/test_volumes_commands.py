"""The volumes service as its askers see it: what is made, found, listed, refused and removed."""

import asyncio
import contextlib
import errno
import threading
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

import pytest

from common.errors import JobletError, Reason
from common.identifiers import new_job_id, new_volume_id
from common.messages.envelope import Body
from common.messages.volumes import (
    CreateVolume,
    DeleteVolume,
    Enforcement,
    GetVolume,
    ListVolumes,
    ResizeVolume,
    VolumeDeleted,
    VolumeFound,
    VolumeKind,
    VolumePage,
    VolumeRecord,
    VolumeStatus,
)
from services.volumes.disk import LONG_THREADS
from tests.unit.volumes_fakes import MIB, FakeDisk, Node, refusal, serve
from tests.waiting import SLOWNESS, await_for


async def page(node: Node, **fields: Any) -> VolumePage:
    """One page of everybody's volumes."""
    return await node.api.request(ListVolumes(visible_owner=None, **fields), VolumePage)


@pytest.mark.requirement("S1.5")
@pytest.mark.requirement("S1.29")
@pytest.mark.requirement("S1.8")
def test_a_new_volume_is_available_and_found_by_name_and_by_id(tmp_path: Path) -> None:
    """Everything that was asked for stands in its record, and on the disk."""

    async def scenario(node: Node) -> None:
        made = await node.create(labels={"team": "a b"}, shared=True)
        assert (made.status, made.enforcement, made.uses) == (VolumeStatus.AVAILABLE, Enforcement.IMAGE, ())
        assert (made.labels, made.shared, made.created_at_ns) == ({"team": "a b"}, True, node.clock.wall_ns)
        assert await node.get("data") == made
        assert await node.get(made.id) == made
        assert node.disk.volumes[made.id].size_bytes == MIB

    serve(scenario, tmp_path)


@pytest.mark.requirement("S1.34")
@pytest.mark.threat("B16")
def test_names_are_unique_among_one_owners_volumes(tmp_path: Path) -> None:
    """A second one of the same owner is refused, of another owner it is another volume."""

    async def scenario(node: Node) -> None:
        own = await node.create()
        assert (await node.create(owner="bob")).id != own.id
        assert (await refusal(node.create())).reason is Reason.EXISTS
        assert len(node.disk.volumes) == 2

    serve(scenario, tmp_path)


@pytest.mark.threat("D24")
def test_of_fifty_at_once_exactly_one_gets_the_name(tmp_path: Path) -> None:
    """The others are told so; when it is made, used and removed by many at once, records and disk agree after it."""

    async def scenario(node: Node) -> None:
        answers = await asyncio.gather(*(node.create() for _ in range(50)), return_exceptions=True)
        refusals = [each for each in answers if isinstance(each, JobletError)]
        (made,) = (each for each in answers if isinstance(each, VolumeRecord))
        assert [each.reason for each in refusals] == [Reason.EXISTS] * 49
        assert list(node.disk.volumes) == [made.id]

        async def create() -> None:
            await node.create()

        async def delete() -> None:
            found = await node.get("data")
            await node.api.request(DeleteVolume(volume=found.id), VolumeDeleted)

        async def use() -> None:
            await node.release(await node.use("data"))

        async def until_it_was_done(change: Callable[[], Awaitable[None]], times: int) -> None:
            while times:
                with contextlib.suppress(JobletError):
                    await change()
                    times -= 1

        await asyncio.gather(*(until_it_was_done(change, 5) for change in (create, delete, use) * 3))
        (left,) = (await page(node)).volumes  # as often made as removed, and one was there
        assert (left.status, left.uses) == (VolumeStatus.AVAILABLE, ())
        assert list(node.disk.volumes) == [left.id]

    serve(scenario, tmp_path)


@pytest.mark.threat("B16")
@pytest.mark.threat("B09")
def test_what_is_another_owners_cannot_be_told_from_what_does_not_exist(tmp_path: Path) -> None:
    """By name, by id, and where nothing is: the same words."""

    async def scenario(node: Node) -> None:
        hers = await node.create()

        async def told(reference: str, visible_owner: str | None = "bob") -> str:
            asked = GetVolume(volume=reference, owner="bob", visible_owner=visible_owner)
            error = await refusal(node.api.request(asked, VolumeFound))
            assert error.reason is Reason.NOT_FOUND
            return str(error).replace(reference, "X")

        nothing = new_volume_id()
        assert len({await told(hers.id), await told(nothing), await told("data"), await told("nope")}) == 1
        seen = GetVolume(volume=hers.id, owner="bob", visible_owner=None)
        assert (await node.api.request(seen, VolumeFound)).volume.id == hers.id

    serve(scenario, tmp_path)


@pytest.mark.threat("D25")
@pytest.mark.parametrize(
    "fields",
    [
        {"name": ""},
        {"name": ".."},
        {"name": "-rf"},
        {"name": "a/b"},
        {"name": "a\0b"},
        {"name": "a\n"},
        {"name": "x" * 64},
        {"name": "dàta"},
        {"name": "6fa459ea-ee8a-4ca4-894e-db77e160355e"},
        {"owner": ""},
        {"owner": "x" * 257},
        {"size_bytes": 0},
        {"size_bytes": -1},
        {"size_bytes": MIB - 1},
        {"size_bytes": 2**40 + 1},
        {"labels": {f"l{n}": "" for n in range(65)}},
        {"labels": {"-l": "x"}},
        {"labels": {"l": "x" * 257}},
        {"labels": {"l": "\x1b[31m"}},
        {"kind": VolumeKind.MEMORY, "encrypted": True},
    ],
)
def test_what_cannot_be_is_refused_and_nothing_is_made(tmp_path: Path, fields: dict[str, Any]) -> None:
    """INVALID, with what to do."""

    async def scenario(node: Node) -> None:
        error = await refusal(node.create(**fields))
        assert error.reason is Reason.INVALID
        assert error.detail
        assert (await page(node)).volumes == ()
        assert node.disk.calls == []

    serve(scenario, tmp_path)


@pytest.mark.requirement("S1.35")
@pytest.mark.requirement("S1.36")
def test_limits_hold_at_the_limit_and_not_one_above(tmp_path: Path) -> None:
    """Per owner in number and in bytes, and for the node."""

    async def scenario(node: Node) -> None:
        await node.create("a", size_bytes=2 * MIB)
        await node.create("b")
        assert "5.0 MiB together" in str(await refusal(node.create("c", size_bytes=2 * MIB)))
        assert (await refusal(node.create("c", size_bytes=MIB + 1))).reason is Reason.EXHAUSTED
        await node.create("c")
        assert (await refusal(node.create("d"))).message.startswith("you have 3 volumes")
        await node.create("a", owner="bob")
        await node.create("b", owner="bob")
        assert (await refusal(node.create("c", owner="bob"))).message.startswith("this node has 5 volumes")

    serve(scenario, tmp_path, owner_count_max=3, count_max=5, owner_bytes_max=4 * MIB)


@pytest.mark.parametrize("encrypted", [False, True])
def test_many_at_once_do_not_pass_a_limit_together(tmp_path: Path, *, encrypted: bool) -> None:
    """What is being made counts from the moment in which it was admitted."""

    async def scenario(node: Node) -> None:
        made = await asyncio.gather(
            *(node.create(f"v{n}", encrypted=encrypted) for n in range(20)), return_exceptions=True
        )
        assert sum(not isinstance(each, BaseException) for each in made) == 7
        assert len(node.disk.volumes) == 7

    serve(scenario, tmp_path, owner_count_max=7)


@pytest.mark.requirement("S1.28")
def test_memory_volumes_share_a_part_of_the_machines_memory(tmp_path: Path) -> None:
    """All of them together, by their sizes."""

    async def scenario(node: Node) -> None:
        await node.create("a", kind=VolumeKind.MEMORY, size_bytes=20 * MIB)
        error = await refusal(node.create("b", owner="bob", kind=VolumeKind.MEMORY, size_bytes=13 * MIB))
        assert error.reason is Reason.EXHAUSTED
        assert "memory_share_percent" in error.detail
        await node.create("b", owner="bob", kind=VolumeKind.MEMORY, size_bytes=12 * MIB)
        await node.create("c", size_bytes=100 * MIB)  # is on the disk

    serve(scenario, tmp_path, memory_share_percent=50)


@pytest.mark.threat("C09")
@pytest.mark.threat("F15")
def test_a_reserve_stays_free_on_the_disk(tmp_path: Path) -> None:
    """Also while others are being made, whose space may not be taken yet."""
    disk = FakeDisk()
    disk.room_bytes = 10 * MIB

    async def scenario(node: Node) -> None:
        assert (await refusal(node.create(size_bytes=7 * MIB))).reason is Reason.EXHAUSTED
        gate = disk.gates["create"] = threading.Event()
        first = asyncio.create_task(node.create(size_bytes=5 * MIB))
        await await_for(lambda: disk.calls, what="the call")
        assert (await refusal(node.create("more", size_bytes=2 * MIB))).reason is Reason.EXHAUSTED
        gate.set()
        await first

    serve(scenario, tmp_path, disk, reserve_bytes=4 * MIB)


@pytest.mark.requirement("S1.29")
@pytest.mark.parametrize(
    "error", [JobletError(Reason.EXHAUSTED, "full"), OSError(errno.ENOSPC, "full"), OSError(5, "x")]
)
def test_a_volume_that_cannot_be_made_leaves_nothing(tmp_path: Path, error: Exception) -> None:
    """No record, no name, nothing on the disk; the name is free."""
    disk = FakeDisk()
    disk.trouble["create"] = error

    async def scenario(node: Node) -> None:
        refused = await refusal(node.create())
        assert refused.reason in (Reason.EXHAUSTED, Reason.INTERNAL)
        assert (await page(node)).volumes == ()
        assert disk.leftovers(set()) == []
        disk.trouble.clear()
        await node.create()

    serve(scenario, tmp_path, disk)


def test_a_host_that_cannot_enforce_the_size_refuses_unless_advisory(tmp_path: Path) -> None:
    """With the reason and the repair."""
    disk = FakeDisk()
    disk.unsupported, disk.enforcement = "no loop devices", Enforcement.ADVISORY

    async def scenario(node: Node) -> None:
        error = await refusal(node.create())
        assert (error.reason, error.detail) == (Reason.PRECONDITION, "use --advisory")
        assert (await node.create(advisory=True)).enforcement is Enforcement.ADVISORY

    serve(scenario, tmp_path, disk)


@pytest.mark.requirement("S1.22")
@pytest.mark.threat("B11")
def test_pages_hold_what_was_asked_for_in_order(tmp_path: Path) -> None:
    """By owner and name, of labels all, across pages each once, and of others nothing."""

    async def scenario(node: Node) -> None:
        for owner in ("bob", "ann"):
            for n in range(5):
                await node.create(f"v{n}", owner=owner, labels={"n": str(n % 2), "all": "x"})
        names = [(each.owner, each.name) for each in (await page(node)).volumes]
        assert names == sorted(names)
        assert len(names) == 10
        seen, token = [], ""
        while True:
            got = await page(node, page_size=3, page_token=token, labels={"all": "x"})
            seen += [(each.owner, each.name) for each in got.volumes]
            token = got.next_page_token
            if not token:
                break
        assert seen == names
        odd = await page(node, owner="bob", labels={"n": "1", "all": "x"})
        assert [each.name for each in odd.volumes] == ["v1", "v3"]
        assert (await page(node, labels={"n": "1", "all": "y"})).volumes == ()
        hidden = await node.api.request(ListVolumes(visible_owner="bob", owner="ann"), VolumePage)
        assert hidden.volumes == ()
        assert hidden.next_page_token == ""
        for bad in ("!", "AAAA", token + "x", "kg"):
            assert (await refusal(page(node, page_token=bad))).reason is Reason.INVALID

    serve(scenario, tmp_path)


@pytest.mark.requirement("S1.24")
def test_a_volume_in_use_is_not_removed_and_its_job_is_named(tmp_path: Path) -> None:
    """The words that `rnx volume remove` shows; afterwards it goes, and nothing of it is left."""

    async def scenario(node: Node) -> None:
        made = await node.create(shared=True)
        jobs = [await node.use("data") for _ in range(3)]
        delete = DeleteVolume(volume=made.id)
        error = await refusal(node.api.request(delete, VolumeDeleted))
        assert error.reason is Reason.PRECONDITION
        assert str(error) == (
            f"volume data is used by job {jobs[0][:8]} (and 2 more): detach it, or remove with --force"
        )
        for job in jobs:
            await node.release(job)
        assert (await node.api.request(delete, VolumeDeleted)).volume == made.id
        assert node.disk.leftovers(set()) == []
        assert (await refusal(node.get())).reason is Reason.NOT_FOUND
        assert (await refusal(node.api.request(delete, VolumeDeleted))).reason is Reason.NOT_FOUND

    serve(scenario, tmp_path)


def test_a_removal_that_fails_is_tried_again(tmp_path: Path) -> None:
    """It says deleting and why, takes no job, keeps its name, and the next removal ends it."""
    disk = FakeDisk()

    async def scenario(node: Node) -> None:
        made = await node.create()
        disk.trouble["delete"] = OSError(errno.EBUSY, "busy")
        assert (await refusal(node.api.request(DeleteVolume(volume=made.id), VolumeDeleted))).reason is Reason.INTERNAL
        shown = await node.get()
        assert (shown.status, "busy" in shown.reason) == (VolumeStatus.DELETING, True)
        assert (await refusal(node.use("data"))).reason is Reason.PRECONDITION
        assert (await refusal(node.create())).reason is Reason.EXISTS
        disk.trouble.clear()
        await node.api.request(DeleteVolume(volume=made.id), VolumeDeleted)
        assert disk.leftovers(set()) == []

    serve(scenario, tmp_path, disk)


def test_a_volume_grows_and_never_shrinks(tmp_path: Path) -> None:
    """Also while it is used, within the limits; the same size again changes nothing."""
    disk = FakeDisk()

    async def scenario(node: Node) -> None:
        made = await node.create()
        await node.use("data")

        async def resize(size_bytes: int) -> VolumeFound:
            return await node.api.request(ResizeVolume(volume=made.id, size_bytes=size_bytes), VolumeFound)

        assert (await resize(3 * MIB)).volume.size_bytes == 3 * MIB
        assert disk.volumes[made.id].size_bytes == 3 * MIB
        await resize(3 * MIB)
        assert disk.times("resize") == 1
        assert (await refusal(resize(2 * MIB))).reason is Reason.INVALID
        assert (await refusal(resize(5 * MIB))).reason is Reason.EXHAUSTED
        disk.trouble["resize"] = OSError(errno.ENOSPC, "full")
        assert (await refusal(resize(4 * MIB))).reason is Reason.EXHAUSTED
        disk.trouble.clear()
        assert (await node.get()).size_bytes == 3 * MIB
        assert (await resize(4 * MIB)).volume.size_bytes == 4 * MIB

    serve(scenario, tmp_path, disk, owner_bytes_max=4 * MIB)


def test_nobody_waits_for_what_takes_long_with_another_volume(tmp_path: Path) -> None:
    """While volumes are made, as many as there are threads for it and more, others are found, and jobs get theirs."""
    disk = FakeDisk()

    async def scenario(node: Node) -> None:
        await node.create()
        gate = disk.gates["create"] = threading.Event()
        slow = [asyncio.create_task(node.create(f"slow{n}")) for n in range(9)]
        await await_for(lambda: disk.times("create") == 1 + LONG_THREADS, what="all threads to be taken")
        job = new_job_id()
        async with asyncio.timeout(10 * SLOWNESS):
            await node.prepare("data", job=job)
            assert (await node.get("slow0")).status is VolumeStatus.CREATING
            assert (await refusal(node.use("slow0"))).reason is Reason.PRECONDITION
        gate.set()
        await asyncio.gather(*slow)

    serve(scenario, tmp_path, disk)


@pytest.mark.parametrize(
    "request_",
    [
        DeleteVolume(volume=new_volume_id()),
        ResizeVolume(volume=new_volume_id(), size_bytes=MIB),
    ],
)
def test_an_unknown_id_is_not_found_and_a_malformed_one_invalid(tmp_path: Path, request_: Body) -> None:
    """Whatever is asked of it."""

    async def scenario(node: Node) -> None:
        assert (await refusal(node.api.request(request_, Body))).reason is Reason.NOT_FOUND
        bad = DeleteVolume(volume="../../etc")  # type: ignore[arg-type]  # as it may come over the bus
        assert (await refusal(node.api.request(bad, VolumeDeleted))).reason is Reason.INVALID
        worse = CreateVolume(owner="a", name="\ud800", kind=VolumeKind.FILESYSTEM, size_bytes=MIB)
        with pytest.raises((JobletError, UnicodeEncodeError)):
            await node.api.request(worse, VolumeFound)

    serve(scenario, tmp_path)
