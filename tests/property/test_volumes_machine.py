"""Whatever happens to a volume, in whatever order: who has it together may, and nothing is left in between for good."""

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from common.identifiers import JobId, new_job_id, new_volume_id
from common.messages.volumes import Enforcement, VolumeKind, VolumeRecord, VolumeStatus
from services.volumes import events as happens
from services.volumes.events import AnyEvent, Forget, Ignored, Refused, Save, Transition, Volume, Work, WorkKind, asks
from services.volumes.machine import TABLE, handle

JOBS = [new_job_id() for _ in range(4)]
times = st.integers(0, 2**62)
jobs = st.sampled_from(JOBS)
works = st.builds(Work, kind=st.sampled_from(WorkKind), snapshot=st.sampled_from(["", "s"]))
texts = st.text(max_size=5)
events: st.SearchStrategy[AnyEvent] = st.one_of(
    st.builds(happens.Created, at_ns=times),
    st.builds(happens.CreateFailed, at_ns=times),
    st.builds(happens.UseRequested, at_ns=times, job=jobs, path=st.sampled_from(["/a", "/b"]), read_only=st.booleans()),
    st.builds(happens.MountFailed, at_ns=times, job=jobs, damage=texts),
    st.builds(happens.ReleaseRequested, at_ns=times, job=jobs, keep_mounted=st.booleans()),
    st.builds(happens.Released, at_ns=times, job=jobs),
    st.builds(happens.WorkBegun, at_ns=times, work=works),
    st.builds(happens.WorkEnded, at_ns=times),
    st.builds(happens.ResizeRequested, at_ns=times, size_bytes=st.integers(0, 100)),
    st.builds(happens.Resized, at_ns=times),
    st.builds(happens.ResizeFailed, at_ns=times),
    st.builds(happens.DeleteRequested, at_ns=times),
    st.builds(happens.IdleTooLong, at_ns=times),
    st.builds(happens.Deleted, at_ns=times),
    st.builds(happens.DeleteFailed, at_ns=times, reason=texts),
    st.builds(happens.FoundDamaged, at_ns=times, reason=texts),
    st.builds(happens.FoundWhole, at_ns=times),
    st.builds(happens.Measured, at_ns=times, used_bytes=st.integers(0, 9), used_inodes=st.just(1), inodes=st.just(2)),
    st.builds(happens.Restarted, at_ns=times),
)


def new_volume(kind: VolumeKind, *, shared: bool, status: VolumeStatus = VolumeStatus.CREATING) -> Volume:
    """A volume as it begins."""
    record = VolumeRecord(
        id=new_volume_id(),
        name="data",
        owner="ann",
        kind=kind,
        size_bytes=50,
        enforcement=Enforcement.IMAGE,
        status=status,
        created_at_ns=1,
        shared=shared,
    )
    return Volume(record=record)


def check_consistent(volume: Volume) -> None:
    """The status says what is true, and who has it together may."""
    record = volume.record
    writers = [use for use in record.uses if not use.read_only]
    if not record.shared:
        assert len(writers) <= 1
        assert not writers or len(record.uses) == 1
        if volume.work is not None and record.status is not VolumeStatus.DAMAGED:
            match volume.work.kind:
                case WorkKind.RESTORE | WorkKind.IMPORT:
                    assert not record.uses
                case WorkKind.EXPORT:
                    assert not writers
                case _:
                    pass
    assert len({use.job for use in record.uses}) == len(record.uses)
    match record.status:
        case VolumeStatus.CREATING | VolumeStatus.DELETING:
            assert not record.uses
            assert volume.work is None
        case VolumeStatus.AVAILABLE:
            assert not record.uses
            assert volume.work is None
        case VolumeStatus.IN_USE:
            assert record.uses
            assert volume.work is None
        case VolumeStatus.BUSY:
            assert volume.work is not None
        case VolumeStatus.DAMAGED:
            pass


def test_every_pair_of_status_and_event_is_decided() -> None:
    """The table has no hole."""
    assert TABLE.keys() == {(status, kind) for status in VolumeStatus for kind in happens.AnyEvent.__args__}


@pytest.mark.requirement("S1.33")
@settings(max_examples=400, deadline=None)
@given(st.sampled_from(VolumeKind), st.booleans(), st.booleans(), st.lists(events, max_size=40))
def test_any_order_of_events(kind: VolumeKind, shared: bool, made: bool, sequence: list[AnyEvent]) -> None:  # noqa: FBT001
    """Never two writers, never a writer beside readers; every change is saved; an end is an end."""
    status = VolumeStatus.AVAILABLE if made else VolumeStatus.CREATING
    volume = new_volume(kind, shared=shared, status=status)
    for event in sequence:
        before = volume
        decision = handle(volume, event)
        if not isinstance(decision, Transition):
            assert isinstance(decision, Ignored | Refused)
            continue
        volume = decision.volume
        if asks(decision, Forget):
            assert isinstance(event, happens.Deleted | happens.CreateFailed)
            assert before.record.status in (VolumeStatus.DELETING, VolumeStatus.CREATING)
            return
        if volume != before:
            assert asks(decision, Save), "a change that is not saved is lost"
        if before.record.status is VolumeStatus.DELETING:
            assert volume.record.status is VolumeStatus.DELETING
        if before.record.status is VolumeStatus.DAMAGED and volume.record.status is not VolumeStatus.DAMAGED:
            assert isinstance(event, happens.FoundWhole | happens.DeleteRequested)
        if volume.record.status is VolumeStatus.DELETING and before.record.uses:
            raise AssertionError("a volume that jobs have is removed")
        if len(volume.record.uses) > len(before.record.uses):
            assert isinstance(event, happens.UseRequested)
            assert before.record.status is not VolumeStatus.DAMAGED
        assert volume.record.size_bytes >= before.record.size_bytes
        check_consistent(volume)


together = st.one_of(
    st.builds(happens.UseRequested, at_ns=times, job=jobs, path=st.just("/a"), read_only=st.booleans()),
    st.builds(happens.Released, at_ns=times, job=jobs),
    st.builds(happens.WorkBegun, at_ns=times, work=works),
    st.builds(happens.WorkEnded, at_ns=times),
)


@pytest.mark.requirement("S1.33")
@settings(max_examples=300, deadline=None)
@given(st.booleans(), st.lists(together, max_size=15))
def test_who_has_it_together(shared: bool, sequence: list[AnyEvent]) -> None:  # noqa: FBT001
    """The same, of what comes and goes only: most sequences above end in a volume that nobody can have."""
    volume = new_volume(VolumeKind.FILESYSTEM, shared=shared, status=VolumeStatus.AVAILABLE)
    for event in sequence:
        decision = handle(volume, event)
        volume = decision.volume if isinstance(decision, Transition) else volume
        check_consistent(volume)


@settings(max_examples=300, deadline=None)
@given(st.sampled_from(VolumeKind), st.booleans(), st.lists(events, max_size=30), jobs)
def test_what_is_asked_twice_is_decided_once(
    kind: VolumeKind,
    shared: bool,  # noqa: FBT001
    sequence: list[AnyEvent],
    job: JobId,
) -> None:
    """A use that was granted, a release, a removal: the same again is no second one."""
    volume = new_volume(kind, shared=shared, status=VolumeStatus.AVAILABLE)
    for event in sequence:
        decision = handle(volume, event)
        volume = decision.volume if isinstance(decision, Transition) else volume
    use = happens.UseRequested(at_ns=1, job=job, path="/a", read_only=True)
    granted = handle(volume, use)
    if isinstance(granted, Transition):
        assert isinstance(handle(granted.volume, use), Ignored)
        left = handle(granted.volume, happens.Released(at_ns=1, job=job))
        assert isinstance(left, Transition)
        assert isinstance(handle(left.volume, happens.Released(at_ns=1, job=job)), Ignored)
    ended = handle(volume, happens.WorkEnded(at_ns=1))
    if isinstance(ended, Transition):
        assert isinstance(handle(ended.volume, happens.WorkEnded(at_ns=1)), Ignored)


@settings(max_examples=300, deadline=None)
@given(st.sampled_from(VolumeKind), st.booleans(), st.lists(events, max_size=30))
def test_after_a_restart_nothing_is_in_between(kind: VolumeKind, shared: bool, sequence: list[AnyEvent]) -> None:  # noqa: FBT001
    """Once what Restarted asks for is done, nobody is making, copying, resizing or removing anything."""
    volume: Volume | None = new_volume(kind, shared=shared)
    for event in sequence:
        decision = handle(volume, event) if volume is not None else None
        if isinstance(decision, Transition):
            volume = None if asks(decision, Forget) else decision.volume
    if volume is None:
        return
    decision = handle(volume, happens.Restarted(at_ns=1))
    if isinstance(decision, Transition):
        volume = decision.volume
        if asks(decision, happens.Remove):
            assert asks(handle(volume, happens.Deleted(at_ns=1)), Forget)
            return
        for answer in (happens.WorkEnded(at_ns=1), happens.ResizeFailed(at_ns=1)):
            next_ = handle(volume, answer)
            volume = next_.volume if isinstance(next_, Transition) else volume
    assert volume.work is None
    assert not volume.resizing_bytes
    assert volume.record.status in (VolumeStatus.AVAILABLE, VolumeStatus.IN_USE, VolumeStatus.DAMAGED)
