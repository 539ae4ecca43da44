"""The table of job life: every cell, and what the ends are called."""

from typing import get_args

import pytest
from msgspec.structs import replace

from common.errors import Reason
from common.identifiers import new_job_id
from common.messages.jobs import TERMINAL, JobRecord, JobSpec, State, Usage, VolumeMount
from services.executor.events import (
    Announce,
    AnyEvent,
    CancelRequested,
    Chosen,
    CleanUp,
    DeleteRequested,
    Due,
    Ended,
    Failure,
    Forget,
    Ignored,
    Job,
    JournalDamaged,
    Launch,
    Launched,
    LaunchFailed,
    LineUp,
    MonitorLost,
    NeverLaunched,
    OutputLost,
    Recorded,
    Refused,
    Save,
    Schedule,
    SignalStop,
    Started,
    StopDelivered,
    StopRequested,
    StopUndelivered,
    Submitted,
    Transition,
    VolumeGranted,
    VolumeWithdrawn,
)
from services.executor.machine import TABLE, handle

SECOND_NS = 1_000_000_000


def job_in(state: State) -> Job:
    """A job in `state`."""
    record = JobRecord(
        id=new_job_id(),
        owner="ann",
        node_id="n",
        state=state,
        spec=JobSpec(command="true", grace_ms=7000, stop_signal=2),
        created_at_ns=1,
    )
    return Job(record=record)


def moved(job: Job, event: AnyEvent) -> Transition:
    """The transition that the event makes."""
    decision = handle(job, event)
    assert isinstance(decision, Transition), decision
    return decision


def test_every_pair_of_state_and_event_is_in_the_table() -> None:
    """No pair falls through."""
    assert set(TABLE) == {(state, event) for state in State for event in get_args(AnyEvent)}


def test_a_job_is_recorded_before_it_is_launched() -> None:
    """Launch comes only after Recorded, and the admission itself, with the choice, is saved durably."""
    submitted = moved(replace(job_in(State.PENDING), chosen_boot="b1"), Submitted(at_ns=1))
    assert submitted.instructions == (Save(durable=True),)
    begun = moved(submitted.job, Recorded(at_ns=2))
    assert begun.job.record.state is State.STARTING
    assert begun.instructions == (Save(), Announce(), Launch())


def test_a_job_without_a_slot_waits_until_it_is_chosen() -> None:
    """It lines up when it is recorded; the choice is durable before the launch."""
    waiting = moved(job_in(State.PENDING), Recorded(at_ns=2))
    assert (waiting.job.record.state, waiting.instructions) == (State.PENDING, (Announce(), LineUp()))
    chosen = moved(waiting.job, Chosen(at_ns=3, boot="b1"))
    assert (chosen.job.record.state, chosen.job.chosen_boot) == (State.STARTING, "b1")
    assert chosen.instructions == (Save(durable=True), Announce(), Launch(when_saved=True))


def test_a_scheduled_job_waits_for_its_time_and_then_for_a_slot() -> None:
    """It cannot be chosen before; its time comes once."""
    scheduled = moved(job_in(State.SCHEDULED), Recorded(at_ns=2))
    assert (scheduled.job.record.state, scheduled.instructions) == (State.SCHEDULED, (Announce(), Schedule()))
    assert isinstance(handle(scheduled.job, Chosen(at_ns=3, boot="b1")), Ignored)
    due = moved(scheduled.job, Due(at_ns=4))
    assert (due.job.record.state, due.instructions) == (State.PENDING, (Save(), Announce(), LineUp()))
    assert isinstance(handle(due.job, Due(at_ns=5)), Ignored)


@pytest.mark.threat("F05")
def test_what_was_not_launched_before_a_restart_waits_again() -> None:
    """Whatever it waited for. A stop that was asked for meanwhile is the end; what runs or has ended stays as it is."""
    never = NeverLaunched(at_ns=9)
    assert moved(job_in(State.SCHEDULED), never).instructions == (Schedule(),)
    assert moved(job_in(State.PENDING), never).instructions == (LineUp(),)
    for state in (State.PENDING, State.STARTING):
        again = moved(replace(job_in(state), chosen_boot="b1"), never)
        assert (again.job.record.state, again.job.chosen_boot) == (State.PENDING, "")
        assert again.instructions == (Save(durable=True), Announce(), LineUp())
    stopped = moved(moved(job_in(State.STARTING), StopRequested(at_ns=5)).job, never).job.record
    assert (stopped.state, stopped.reason) == (State.CANCELED, "stopped before it started")
    for state in (State.RUNNING, *sorted(TERMINAL)):
        assert isinstance(handle(job_in(state), never), Ignored)


@pytest.mark.parametrize("event", [Recorded(at_ns=2), Due(at_ns=2), Chosen(at_ns=2, boot="b1")])
@pytest.mark.parametrize("state", [State.STARTING, State.RUNNING, *sorted(TERMINAL)])
def test_a_job_is_never_launched_twice(state: State, event: AnyEvent) -> None:
    """What launches a waiting job changes nothing after the launch."""
    assert isinstance(handle(job_in(state), event), Ignored)


def test_start_tells_pid_and_time_of_the_journal() -> None:
    """RUNNING carries what START says."""
    started = moved(job_in(State.STARTING), Started(at_ns=5, pid=77))
    record = started.job.record
    assert (record.state, record.pid, record.started_at_ns) == (State.RUNNING, 77, 5)


@pytest.mark.parametrize(
    ("event", "state", "reason"),
    [
        (Ended(at_ns=9, outcome="exited", exit_code=0), State.COMPLETED, ""),
        (Ended(at_ns=9, outcome="exited", exit_code=7), State.FAILED, "exited with code 7"),
        (Ended(at_ns=9, outcome="signaled", signal=9), State.FAILED, "killed by signal 9 (SIGKILL)"),
        (
            Ended(at_ns=9, outcome="signaled", signal=9, usage=Usage(oom_kills=1)),
            State.FAILED,
            "out of memory: killed by signal 9 (SIGKILL)",
        ),
        (Ended(at_ns=9, outcome="signaled", signal=15, ended_by="client"), State.STOPPED, ""),
        (Ended(at_ns=9, outcome="exited", exit_code=0, ended_by="client"), State.STOPPED, ""),
        (
            Ended(at_ns=9, outcome="signaled", signal=9, ended_by="timeout"),
            State.TIMED_OUT,
            "its run time limit was reached",
        ),
        (Ended(at_ns=9, outcome="not_started", ended_by="client"), State.STOPPED, "stopped before its command ran"),
        (
            Ended(
                at_ns=9,
                outcome="not_started",
                failure=Failure(step="exec", path="/bin/nosuch", errno=2, message="No such file or directory"),
            ),
            State.FAILED,
            "could not be started: exec /bin/nosuch: No such file or directory",
        ),
        (
            Ended(
                at_ns=9,
                outcome="not_started",
                failure=Failure(
                    step="exec", path="nosuch", errno=2, message="command 'nosuch' not found in PATH (/bin)"
                ),
            ),
            State.FAILED,
            "could not be started: command 'nosuch' not found in PATH (/bin)",
        ),
        (
            Ended(at_ns=9, outcome="not_started", failure=Failure(step="mount", errno=1)),
            State.FAILED,
            "could not be started: mount: errno 1",
        ),
        (Ended(at_ns=9, outcome="signaled", signal=40), State.FAILED, "killed by signal 40 (signal 40)"),
    ],
)
def test_each_end_has_its_state_and_its_words(event: Ended, state: State, reason: str) -> None:
    """The EXIT of the journal decides, in words a user understands."""
    ended = moved(job_in(State.RUNNING), event)
    assert (ended.job.record.state, ended.job.record.reason) == (state, reason)
    assert ended.instructions == (Save(durable=True), Announce(), CleanUp())


@pytest.mark.threat("C03")
def test_an_oom_kill_is_told_even_when_the_exit_code_is_zero() -> None:
    """A child was killed, the main process exited with 0: COMPLETED, and oom_killed says the rest."""
    record = moved(
        job_in(State.RUNNING), Ended(at_ns=9, outcome="exited", exit_code=0, usage=Usage(oom_kills=2))
    ).job.record
    assert (record.state, record.oom_killed) == (State.COMPLETED, True)
    assert record.usage is not None
    assert record.usage.oom_kills == 2


def test_exit_code_and_signal_are_never_both_set() -> None:
    """An exit has a code, a death by signal has a signal."""
    exited = moved(job_in(State.RUNNING), Ended(at_ns=9, outcome="exited", exit_code=3)).job.record
    killed = moved(job_in(State.RUNNING), Ended(at_ns=9, outcome="signaled", signal=6)).job.record
    assert (exited.exit_code, exited.signal, killed.exit_code, killed.signal) == (3, None, None, 6)


@pytest.mark.threat("F03")
def test_a_monitor_without_exit_means_lost() -> None:
    """LOST, with the reason that is known."""
    lost = moved(job_in(State.RUNNING), MonitorLost(at_ns=9, last_sequence=4)).job.record
    assert (lost.state, lost.last_sequence) == (State.LOST, 4)
    assert "monitor ended without recording" in lost.reason
    told = moved(job_in(State.RUNNING), MonitorLost(at_ns=9, reason="corrupt record at byte 5")).job.record
    assert told.reason == "corrupt record at byte 5"


def test_a_stop_is_sent_with_the_specs_signal_and_grace_or_the_clients() -> None:
    """What the client leaves open comes from the job's spec."""
    by_spec = moved(job_in(State.RUNNING), StopRequested(at_ns=5))
    assert by_spec.instructions[-1] == SignalStop(signal=2, grace_ms=7000)
    by_client = moved(job_in(State.RUNNING), StopRequested(at_ns=5, signal=9, grace_ms=0))
    assert by_client.instructions[-1] == SignalStop(signal=9, grace_ms=0)
    assert by_client.job.record.stop_requested_at_ns == 5


def test_a_stop_that_no_monitor_took_is_sent_again_at_the_start_with_the_grace_that_is_left() -> None:
    """Stopping a STARTING job works, whichever comes first."""
    asked = moved(job_in(State.STARTING), StopRequested(at_ns=SECOND_NS)).job
    assert isinstance(handle(asked, StopUndelivered(at_ns=SECOND_NS)), Ignored)
    launched = moved(asked, Launched(at_ns=3 * SECOND_NS))
    assert launched.instructions == (SignalStop(signal=2, grace_ms=5000),)
    started = moved(asked, Started(at_ns=60 * SECOND_NS, pid=3))
    assert started.instructions[-1] == SignalStop(signal=2, grace_ms=0)
    delivered = moved(launched.job, StopDelivered(at_ns=4 * SECOND_NS)).job
    assert isinstance(handle(delivered, Launched(at_ns=5 * SECOND_NS)), Ignored)
    assert moved(delivered, Started(at_ns=5 * SECOND_NS, pid=3)).instructions == (Save(), Announce())


@pytest.mark.parametrize("event", [StopRequested(at_ns=4), CancelRequested(at_ns=4)])
@pytest.mark.parametrize("state", [State.SCHEDULED, State.PENDING])
def test_what_has_not_started_is_withdrawn(state: State, event: StopRequested | CancelRequested) -> None:
    """Stop and cancel are the same before the launch."""
    canceled = moved(job_in(state), event)
    assert canceled.job.record.state is State.CANCELED
    assert canceled.job.record.reason.endswith("before it started")


@pytest.mark.threat("D30")
@pytest.mark.parametrize("state", list(State))
def test_each_request_has_a_fixed_answer_in_each_state(state: State) -> None:
    """Stop, cancel and delete are granted exactly where they mean something, and refused with the state's name."""
    waits = state in (State.SCHEDULED, State.PENDING)
    granted = {
        StopRequested: state not in TERMINAL,
        CancelRequested: waits,
        DeleteRequested: state in TERMINAL,
    }
    for request, allowed in granted.items():
        decision = handle(job_in(state), request(at_ns=2))
        assert isinstance(decision, Transition if allowed else Refused), (state, request)
        if isinstance(decision, Refused):
            assert decision.error.reason is Reason.PRECONDITION
            assert state.value in decision.error.message
            assert decision.error.detail


def test_a_running_job_gets_and_leaves_volumes() -> None:
    """Each change is durable and announced; the order of the others stays."""
    data, logs = (VolumeMount(name=name, path=f"/volumes/{name}") for name in ("data", "logs"))
    job = job_in(State.RUNNING)
    for event, volumes in (
        (VolumeGranted(at_ns=2, mount=data), (data,)),
        (VolumeGranted(at_ns=3, mount=logs), (data, logs)),
        (VolumeWithdrawn(at_ns=4, name="data"), (logs,)),
    ):
        changed = moved(job, event)
        assert changed.instructions == (Save(durable=True), Announce())
        assert changed.job == job.with_record(spec=replace(job.record.spec, volumes=volumes))
        job = changed.job
    assert isinstance(handle(job, VolumeGranted(at_ns=5, mount=logs)), Ignored)


@pytest.mark.parametrize("mount", [VolumeMount(name="data", path="/x"), VolumeMount(name="x", path="/data")])
def test_a_volume_has_one_place_and_a_place_one_volume(mount: VolumeMount) -> None:
    """Anything else is refused, and tells what is there."""
    record = job_in(State.RUNNING).record
    spec = replace(record.spec, volumes=(VolumeMount(name="data", path="/data"),))
    decision = handle(Job(record=replace(record, spec=spec)), VolumeGranted(at_ns=2, mount=mount))
    assert isinstance(decision, Refused)
    assert (decision.error.reason, "/data" in decision.error.message) == (Reason.PRECONDITION, True)
    assert decision.error.detail


@pytest.mark.parametrize("state", [state for state in State if state is not State.RUNNING])
def test_only_a_running_job_gets_and_leaves_volumes(state: State) -> None:
    """Before its start they are in what it was submitted with, and its end releases them."""
    data = VolumeMount(name="data", path="/data")
    for event in (VolumeGranted(at_ns=2, mount=data), VolumeWithdrawn(at_ns=2, name="data")):
        decision = handle(job_in(state), event)
        assert isinstance(decision, Refused)
        assert (decision.error.reason, state.value in decision.error.message) == (Reason.PRECONDITION, True)
    unknown = handle(job_in(State.RUNNING), VolumeWithdrawn(at_ns=2, name="data"))
    assert isinstance(unknown, Refused)
    assert unknown.error.reason is Reason.NOT_FOUND


def test_delete_removes_what_is_left_and_then_forgets() -> None:
    """In this order: a record is the only thing by which leftovers are found."""
    assert moved(job_in(State.FAILED), DeleteRequested(at_ns=2)).instructions == (CleanUp(), Forget())


def test_damage_to_the_journal_stays_told_when_the_job_ends_well() -> None:
    """The job goes on, and its record says that output is missing."""
    damaged = moved(job_in(State.RUNNING), JournalDamaged(at_ns=3, problem="byte 9")).job
    assert isinstance(handle(damaged, JournalDamaged(at_ns=3, problem="byte 9")), Ignored)
    ended = moved(damaged, Ended(at_ns=4, outcome="exited", exit_code=0)).job.record
    assert (ended.state, ended.reason) == (State.COMPLETED, "its journal is damaged: byte 9")


@pytest.mark.threat("F13")
def test_a_loss_is_counted_once_however_often_its_gap_is_read() -> None:
    """By sequence: what is known counts nothing, what is new counts as far as it is new. An ended job's is final."""
    job = moved(job_in(State.RUNNING), OutputLost(at_ns=2, first=5, entries=6, bytes=60)).job
    assert (job.record.lost_entries, job.record.lost_bytes, job.lost_through) == (6, 60, 10)
    assert isinstance(handle(job, OutputLost(at_ns=3, first=5, entries=6, bytes=60)), Ignored)
    assert isinstance(handle(job, OutputLost(at_ns=3, first=1, entries=2, bytes=9)), Ignored)
    further = moved(job, OutputLost(at_ns=4, first=8, entries=5, bytes=50))
    assert (further.job.record.lost_entries, further.job.record.lost_bytes) == (8, 60)
    assert further.instructions == (Save(),)
    ended = moved(further.job, Ended(at_ns=5, outcome="exited", exit_code=0)).job
    assert isinstance(handle(ended, OutputLost(at_ns=6, first=90, entries=1)), Ignored)
    assert ended.record.lost_entries == 8


def test_what_a_lost_monitor_left_unfinished_is_counted() -> None:
    """In bytes: how many entries it would have been, nobody knows. What was told before is not told twice."""
    job = moved(job_in(State.RUNNING), OutputLost(at_ns=2, first=5, entries=6, bytes=60)).job
    lost = moved(job, MonitorLost(at_ns=3, last_sequence=10, lost_bytes=7)).job.record
    assert (lost.state, lost.lost_entries, lost.lost_bytes) == (State.LOST, 6, 67)
    damaged = moved(job, JournalDamaged(at_ns=3, problem="byte 9")).job
    assert moved(damaged, MonitorLost(at_ns=4, reason="byte 9")).job.record.reason == "its journal is damaged: byte 9"


def test_a_failed_launch_is_the_end() -> None:
    """With the reason given."""
    failed = moved(job_in(State.STARTING), LaunchFailed(at_ns=8, reason="no fork")).job.record
    assert (failed.state, failed.reason, failed.ended_at_ns) == (State.FAILED, "no fork", 8)


@pytest.mark.threat("F29")
def test_a_job_never_ends_before_it_started() -> None:
    """Also when the clock went back meanwhile."""
    running = moved(job_in(State.STARTING), Started(at_ns=100, pid=1)).job
    assert moved(running, Ended(at_ns=50, outcome="exited", exit_code=0)).job.record.ended_at_ns == 100
