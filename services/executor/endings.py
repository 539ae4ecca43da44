"""How a job ended, in its record's terms: from the EXIT of its journal, or from there being none. Pure.

Which end is which state: not started → FAILED (STOPPED when a client asked for it before the start), ended by a
client → STOPPED, by the run time limit → TIMED_OUT, exit code 0 → COMPLETED, anything else → FAILED with a reason.
"""

import signal
from typing import Any, Final

from common.messages.jobs import State
from services.executor.events import Ended, Failure, Job, MonitorLost

KILL: Final = 9


def settle(job: Job, event: Ended) -> Job:
    """The job as its EXIT says it ended."""
    state, reason = _verdict(event)
    return job.with_record(
        **_common(job, event.at_ns, event.last_sequence),
        state=state,
        reason=_joined(reason, job.record.reason),
        exit_code=event.exit_code if event.outcome == "exited" else None,
        signal=event.signal if event.outcome == "signaled" else None,
        oom_killed=event.usage.oom_kills > 0,
        usage=event.usage,
    )


def lose(job: Job, event: MonitorLost) -> Job:
    """The job whose monitor died without telling its end."""
    what = event.reason or "its monitor ended without recording how the job ended"
    told = job.record.reason
    return job.with_record(
        **_common(job, event.at_ns, event.last_sequence),
        state=State.LOST,
        reason=told if what in told else _joined(what, told),
        lost_bytes=job.record.lost_bytes + event.lost_bytes,
    )


def _joined(*reasons: str) -> str:
    return "; ".join(filter(None, reasons))


def _common(job: Job, at_ns: int, last_sequence: int) -> dict[str, Any]:
    return {
        "ended_at_ns": max(at_ns, job.record.started_at_ns, job.record.created_at_ns),  # a clock may have gone back
        "last_sequence": max(last_sequence, job.record.last_sequence),
    }


def _verdict(event: Ended) -> tuple[State, str]:
    if event.outcome == "not_started":
        if event.ended_by == "client" and (event.failure is None or not event.failure.errno):
            return State.STOPPED, "stopped before its command ran"
        return State.FAILED, could_not_start(event.failure)
    if event.ended_by == "client":
        return State.STOPPED, ""
    if event.ended_by == "timeout":
        return State.TIMED_OUT, "its run time limit was reached"
    if event.outcome == "exited" and event.exit_code == 0:
        return State.COMPLETED, ""
    return State.FAILED, _why(event)


def could_not_start(failure: Failure | None) -> str:
    """Words for a launch that failed: step, path or command, and what the kernel said."""
    if failure is None:
        return "could not be started, for a reason that its monitor did not record"
    if failure.path and failure.path in failure.message:
        return f"could not be started: {failure.message}"
    where = f" {failure.path}" if failure.path else ""
    return f"could not be started: {failure.step or 'launch'}{where}: {failure.message or f'errno {failure.errno}'}"


def _why(event: Ended) -> str:
    if event.outcome == "signaled" and event.signal is not None:
        killed = f"killed by signal {event.signal} ({signal_name(event.signal)})"
        return f"out of memory: {killed}" if event.usage.oom_kills > 0 and event.signal == KILL else killed
    return f"exited with code {event.exit_code}"


def signal_name(number: int) -> str:
    """`SIGKILL` for 9; real-time and unknown signals by their number."""
    try:
        return signal.Signals(number).name
    except ValueError:
        return f"signal {number}"
