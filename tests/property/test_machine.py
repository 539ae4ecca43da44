"""Whatever happens to a job, in whatever order: it has one end, and is launched at most once, as far as is known."""

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from common.identifiers import new_job_id
from common.messages.jobs import TERMINAL, JobRecord, JobSpec, State, Usage
from services.executor.events import (
    Announce,
    AnyEvent,
    CancelRequested,
    Chosen,
    DeleteRequested,
    Due,
    Ended,
    Forget,
    Job,
    JournalDamaged,
    Launch,
    Launched,
    LaunchFailed,
    MonitorLost,
    NeverLaunched,
    OutputLost,
    Recorded,
    Save,
    SignalStop,
    Started,
    StopDelivered,
    StopRequested,
    StopUndelivered,
    Submitted,
    Transition,
)
from services.executor.machine import handle

times = st.integers(0, 2**62)
small = st.integers(0, 255)
ends = st.builds(
    Ended,
    at_ns=times,
    outcome=st.sampled_from(["exited", "signaled", "not_started"]),
    exit_code=st.none() | small,
    signal=st.none() | small,
    ended_by=st.sampled_from(["", "client", "timeout"]),
    usage=st.builds(Usage, oom_kills=st.integers(0, 3), network_rx_bytes=small),
    last_sequence=st.integers(0, 10**6),
)
events: st.SearchStrategy[AnyEvent] = st.one_of(
    st.builds(Submitted, at_ns=times),
    st.builds(Recorded, at_ns=times),
    st.builds(Due, at_ns=times),
    st.builds(Chosen, at_ns=times, boot=st.just("b2")),
    st.builds(NeverLaunched, at_ns=times),
    st.builds(Launched, at_ns=times),
    st.builds(LaunchFailed, at_ns=times, reason=st.text(max_size=5)),
    st.builds(Started, at_ns=times, pid=st.integers(1, 2**22)),
    ends,
    st.builds(MonitorLost, at_ns=times, last_sequence=st.integers(0, 10)),
    st.builds(OutputLost, at_ns=times, first=st.integers(1, 30), entries=st.integers(1, 9), bytes=small),
    st.builds(JournalDamaged, at_ns=times, problem=st.text(max_size=5)),
    st.builds(StopRequested, at_ns=times, signal=st.none() | small, grace_ms=st.none() | small),
    st.builds(StopDelivered, at_ns=times),
    st.builds(StopUndelivered, at_ns=times),
    st.builds(CancelRequested, at_ns=times),
    st.builds(DeleteRequested, at_ns=times),
)


@pytest.mark.threat("F06")
@settings(max_examples=300, deadline=None)
@given(st.sampled_from([State.SCHEDULED, State.PENDING]), st.sampled_from(["", "b1"]), st.lists(events, max_size=30))
def test_one_end_one_launch_and_consistent_fields(first: State, boot: str, sequence: list[AnyEvent]) -> None:
    """I2: exactly one terminal state, announced once; a terminal record never changes; graces only shrink.

    One launch, and one more each time that it is certain that there was none. Who is launched has been chosen.
    """
    record = JobRecord(id=new_job_id(), owner="a", node_id="n", state=first, spec=JobSpec(command="x"), created_at_ns=5)
    job = Job(record=record, chosen_boot=boot)
    launches = final_announcements = 0
    for event in sequence:
        before = job
        decision = handle(job, event)
        if not isinstance(decision, Transition):
            continue
        job = decision.job
        for launch in [i for i in decision.instructions if isinstance(i, Launch)]:
            launches += 1
            assert job.chosen_boot
            assert launch.when_saved == (job.chosen_boot != before.chosen_boot)
        if isinstance(event, NeverLaunched) and before.record.state is State.STARTING:
            launches -= 1
        if before.record.state in TERMINAL:
            assert job == before
            assert any(isinstance(i, Forget) for i in decision.instructions)
            continue
        if job != before:
            assert any(isinstance(i, Save) for i in decision.instructions), "a change that is not saved is lost"
        assert job.record.lost_entries <= job.lost_through, "an entry was counted as lost twice"
        if job.record.state in TERMINAL:
            final_announcements += sum(isinstance(i, Announce) for i in decision.instructions)
            assert Save(durable=True) in decision.instructions
            assert job.record.ended_at_ns >= job.record.started_at_ns
        for instruction in decision.instructions:
            if isinstance(instruction, SignalStop) and job.stop is not None:
                assert 0 <= instruction.grace_ms <= job.stop.grace_ms
    assert launches <= 1
    assert final_announcements == (1 if job.record.state in TERMINAL else 0)
