"""The life of a job: one table, pure. An event comes in, the job as it is now and instructions come out.

Rules:
- No I/O, no clock, no randomness: times come in as fields of events.
- Every pair of state and event is in `TABLE`: a transition, an `Ignored` that says why, or a `Refused`.
- A terminal state is never left. Exactly one Announce carries a job into it.
- The journal is the only source of start and end: Started is its START, Ended its EXIT (docs/protocol.md).
- A job is launched by Recorded, which comes once, or by Chosen; in both cases after it is durable that it was chosen.
  Either makes it STARTING, and only NeverLaunched leads back from there: never twice.

Executed by `jobs.py`. The drawing is in docs/protocol.md.
"""

from collections.abc import Callable
from typing import Any, Final

from msgspec.structs import replace

from common.errors import not_found, precondition
from common.messages.jobs import TERMINAL, State, VolumeMount
from services.executor import endings
from services.executor.events import (
    Announce,
    AnyEvent,
    CancelRequested,
    Chosen,
    CleanUp,
    Decision,
    DeleteRequested,
    Due,
    Ended,
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
    StopOrder,
    StopRequested,
    StopUndelivered,
    Submitted,
    Transition,
    VolumeGranted,
    VolumeWithdrawn,
)

Rule = Callable[[Job, Any], Decision]
"""One cell of the table. The event is of the type that the cell stands under."""


def handle(job: Job, event: AnyEvent) -> Decision:
    """What `event` means for `job`."""
    return TABLE[job.record.state, type(event)](job, event)


def _ignored(why: str) -> Rule:
    def rule(job: Job, event: AnyEvent) -> Decision:  # noqa: ARG001  # the table's shape
        return Ignored(why=why)

    return rule


def _refused(what: str, detail: str) -> Rule:
    def rule(job: Job, event: AnyEvent) -> Decision:  # noqa: ARG001  # the table's shape
        state = job.record.state
        return Refused(error=precondition(f"job {job.record.id} is {state}: {what}", detail))

    return rule


def _submit(job: Job, event: Submitted) -> Decision:  # noqa: ARG001
    return Transition(job=job, instructions=(Save(durable=True),))


def _begin(job: Job, event: Recorded) -> Decision:  # noqa: ARG001
    if not job.chosen_boot:
        return Transition(job=job, instructions=(Announce(), LineUp()))
    return Transition(job=job.with_record(state=State.STARTING), instructions=(Save(), Announce(), Launch()))


def _put_off(job: Job, event: Recorded) -> Decision:  # noqa: ARG001
    return Transition(job=job, instructions=(Announce(), Schedule()))


def _fall_due(job: Job, event: Due) -> Decision:  # noqa: ARG001
    return Transition(job=job.with_record(state=State.PENDING), instructions=(Save(), Announce(), LineUp()))


def _choose(job: Job, event: Chosen) -> Decision:
    chosen = replace(job, chosen_boot=event.boot).with_record(state=State.STARTING)
    return Transition(job=chosen, instructions=(Save(durable=True), Announce(), Launch(when_saved=True)))


def _wait_on(job: Job, event: NeverLaunched) -> Decision:  # noqa: ARG001
    return Transition(job=job, instructions=(Schedule(),))


def _wait_again(job: Job, event: NeverLaunched) -> Decision:
    if job.stop is not None:
        return _withdraw(job, event)
    if job.record.state is State.PENDING and not job.chosen_boot:
        return Transition(job=job, instructions=(LineUp(),))
    waiting = replace(job, chosen_boot="").with_record(state=State.PENDING)
    # Durable: after a power cut a job that was chosen before it is given up, see recovery.py.
    return Transition(job=waiting, instructions=(Save(durable=True), Announce(), LineUp()))


def _withdraw(job: Job, event: CancelRequested | StopRequested | NeverLaunched) -> Decision:
    word = "canceled" if isinstance(event, CancelRequested) else "stopped"
    canceled = job.with_record(state=State.CANCELED, ended_at_ns=event.at_ns, reason=f"{word} before it started")
    return Transition(job=canceled, instructions=(Save(durable=True), Announce(), CleanUp()))


def _fail_launch(job: Job, event: LaunchFailed) -> Decision:
    failed = job.with_record(state=State.FAILED, ended_at_ns=event.at_ns, reason=event.reason)
    return Transition(job=failed, instructions=(Save(durable=True), Announce(), CleanUp()))


def _launched(job: Job, event: Launched) -> Decision:
    if job.stop is None or job.stop.delivered:
        return Ignored(why="the journal will tell the start")
    return Transition(job=job, instructions=(_signal_stop(job.stop, event.at_ns),))


def _start(job: Job, event: Started) -> Decision:
    running = job.with_record(state=State.RUNNING, pid=event.pid, started_at_ns=event.at_ns)
    follow_up = () if job.stop is None or job.stop.delivered else (_signal_stop(job.stop, event.at_ns),)
    return Transition(job=running, instructions=(Save(), Announce(), *follow_up))


def _end(job: Job, event: Ended) -> Decision:
    return Transition(job=endings.settle(job, event), instructions=(Save(durable=True), Announce(), CleanUp()))


def _lose(job: Job, event: MonitorLost) -> Decision:
    return Transition(job=endings.lose(job, event), instructions=(Save(durable=True), Announce(), CleanUp()))


def _damaged(job: Job, event: JournalDamaged) -> Decision:
    if job.record.reason:
        return Ignored(why="told already")
    return Transition(job=job.with_record(reason=f"its journal is damaged: {event.problem}"), instructions=(Save(),))


def _count_loss(job: Job, event: OutputLost) -> Decision:
    last = event.first + event.entries - 1
    new = last - max(event.first - 1, job.lost_through)
    if new <= 0:
        return Ignored(why="counted when it was read before")
    record = job.record
    lost_bytes = record.lost_bytes + (event.bytes if event.first > job.lost_through else 0)
    counted = replace(job, lost_through=last)
    return Transition(
        job=counted.with_record(lost_entries=record.lost_entries + new, lost_bytes=lost_bytes), instructions=(Save(),)
    )


def _stop(job: Job, event: StopRequested) -> Decision:
    spec = job.record.spec
    order = StopOrder(
        signal=spec.stop_signal if event.signal is None else event.signal,
        grace_ms=spec.grace_ms if event.grace_ms is None else event.grace_ms,
        requested_at_ns=event.at_ns,
    )
    first = job.record.stop_requested_at_ns or event.at_ns
    stopping = replace(job, stop=order).with_record(stop_requested_at_ns=first)
    return Transition(job=stopping, instructions=(Save(), Announce(), _signal_stop(order, event.at_ns)))


def _delivered(job: Job, event: StopDelivered) -> Decision:  # noqa: ARG001
    if job.stop is None:
        return Ignored(why="no stop was asked for")
    return Transition(job=replace(job, stop=replace(job.stop, delivered=True)), instructions=(Save(),))


def _grant(job: Job, event: VolumeGranted) -> Decision:
    wanted = event.mount
    for mount in job.record.spec.volumes:
        if mount == wanted:
            return Ignored(why="the job has it")
        if mount.name == wanted.name:
            how = f"{mount.path}, {'read-only' if mount.read_only else 'to be written'}"
            error = precondition(f"job {job.record.id} has the volume {mount.name} already: {how}", "detach it first")
            return Refused(error=error)
        if mount.path == wanted.path:
            error = precondition(f"job {job.record.id} has the volume {mount.name} at {mount.path}", "use another path")
            return Refused(error=error)
    return _with_volumes(job, (*job.record.spec.volumes, wanted))


def _withdraw_volume(job: Job, event: VolumeWithdrawn) -> Decision:
    left = tuple(mount for mount in job.record.spec.volumes if mount.name != event.name)
    if left == job.record.spec.volumes:
        error = not_found(f"job {job.record.id} has no volume {event.name}", "rnx job status tells which it has")
        return Refused(error=error)
    return _with_volumes(job, left)


def _with_volumes(job: Job, volumes: tuple[VolumeMount, ...]) -> Transition:
    changed = job.with_record(spec=replace(job.record.spec, volumes=volumes))
    return Transition(job=changed, instructions=(Save(durable=True), Announce()))


def _delete(job: Job, event: DeleteRequested) -> Decision:  # noqa: ARG001
    return Transition(job=job, instructions=(CleanUp(), Forget()))


def _signal_stop(order: StopOrder, now_ns: int) -> SignalStop:
    """The stop with what is left of its grace: a stop that is sent again does not begin again."""
    waited_ms = max(0, now_ns - order.requested_at_ns) // 1_000_000
    return SignalStop(signal=order.signal, grace_ms=max(0, order.grace_ms - waited_ms))


_EARLY: Final = _ignored("the job has not been launched")
_OVER: Final = _ignored("the job has ended: its first end counts")
_LATE_STOP: Final = _ignored("the job has ended meanwhile")
_WAITS: Final = (State.SCHEDULED, State.PENDING)
_ALIVE: Final = (State.STARTING, State.RUNNING)
_PASSIVE: Final = (
    Submitted,
    Recorded,
    Due,
    Chosen,
    NeverLaunched,
    Launched,
    LaunchFailed,
    Started,
    Ended,
    MonitorLost,
    JournalDamaged,
    OutputLost,
)


def _build() -> dict[tuple[State, type[AnyEvent]], Rule]:
    table: dict[tuple[State, type[AnyEvent]], Rule] = {}
    for state in _WAITS:
        table[state, LaunchFailed] = _fail_launch
        table[state, Launched] = _EARLY
        # A record is written before the launch and the next state after it, so a restarted executor may find START
        # or EXIT in the journal of a job that its records still call PENDING.
        table[state, Started] = _start
        table[state, Ended] = _end
        table[state, MonitorLost] = _lose
        table[state, JournalDamaged] = _damaged
        table[state, OutputLost] = _count_loss
        table[state, StopRequested] = _withdraw
        table[state, StopDelivered] = _EARLY
        table[state, StopUndelivered] = _EARLY
        table[state, CancelRequested] = _withdraw
        table[state, DeleteRequested] = _refused("only ended jobs can be deleted", "cancel it first")
    table[State.SCHEDULED, Submitted] = _submit
    table[State.SCHEDULED, Recorded] = _put_off
    table[State.SCHEDULED, Due] = _fall_due
    table[State.SCHEDULED, Chosen] = _ignored("its time has not come")
    table[State.SCHEDULED, NeverLaunched] = _wait_on
    table[State.PENDING, Submitted] = _submit
    table[State.PENDING, Recorded] = _begin
    table[State.PENDING, Due] = _ignored("its time has come before")
    table[State.PENDING, Chosen] = _choose
    table[State.PENDING, NeverLaunched] = _wait_again
    for state in _ALIVE:
        table[state, Submitted] = _ignored("the job was submitted before")
        table[state, Recorded] = _ignored("the job was launched before")
        table[state, Due] = _ignored("the job was launched before")
        table[state, Chosen] = _ignored("the job was launched before")
        table[state, Launched] = _launched
        table[state, LaunchFailed] = _fail_launch
        table[state, Started] = _start
        table[state, Ended] = _end
        table[state, MonitorLost] = _lose
        table[state, JournalDamaged] = _damaged
        table[state, OutputLost] = _count_loss
        table[state, StopRequested] = _stop
        table[state, StopDelivered] = _delivered
        table[state, StopUndelivered] = _ignored("sent again at its start, or its end comes")
        table[state, CancelRequested] = _refused("only jobs that have not started can be canceled", "stop it instead")
        table[state, DeleteRequested] = _refused("only ended jobs can be deleted", "stop it and wait for its end")
    table.update(_volume_rules())
    table[State.STARTING, NeverLaunched] = _wait_again
    table[State.RUNNING, NeverLaunched] = _ignored("the journal had its START: it was launched")
    table[State.RUNNING, Started] = _ignored("the start is known")
    table[State.RUNNING, LaunchFailed] = _ignored("the journal has its START: it was launched")
    for state in TERMINAL:
        for event in _PASSIVE:
            table[state, event] = _OVER
        table[state, StopRequested] = _refused("only running jobs can be stopped", "it needs no stop")
        table[state, StopDelivered] = _LATE_STOP
        table[state, StopUndelivered] = _LATE_STOP
        table[state, CancelRequested] = _refused("only jobs that have not started can be canceled", "it has ended")
        table[state, DeleteRequested] = _delete
    return table


def _volume_rules() -> dict[tuple[State, type[AnyEvent]], Rule]:
    grant = _refused("only a running job can be given a volume", "name it when a job is run")
    withdraw = _refused("only a running job can leave a volume", "its end releases all it has")
    rules: dict[tuple[State, type[AnyEvent]], Rule] = {}
    for state in State:
        rules[state, VolumeGranted] = _grant if state is State.RUNNING else grant
        rules[state, VolumeWithdrawn] = _withdraw_volume if state is State.RUNNING else withdraw
    return rules


TABLE: Final = _build()
