"""`rnx job run` and `rnx job start`: start a job, and stay with it to its end.

Here: attaching, detaching, and what an interrupt does. Not here: the options about the job (`spec.py`).

A job is never started twice: every run has an idempotency key, and RunJob is repeated under it only.
"""

import sys
from typing import Any, Final

import click

from cli.client.exits import Exit, exit_of_job
from cli.client.jobs import new_idempotency_key, plan_job, run_job, stop_job
from cli.client.logs import LogStream
from cli.client.session import Session
from cli.client.uploads import collect, total_bytes, upload
from cli.client.views import job_object
from cli.front.output import print_line, tell
from cli.rnx.commands import Verb
from cli.rnx.interrupts import Interrupts, Policy
from cli.rnx.invocation import Invocation, pass_invocation
from cli.rnx.progress import transfer_progress
from cli.rnx.show import waiting_text
from cli.rnx.sink import attached_sink
from cli.rnx.spec import RunOptions, build_spec, job_options
from cli.rnx.tables import print_json
from common.errors import JobletError, Reason
from common.identifiers import parse_key
from proto.joblet.v1 import job_pb2

# Everything from COMMAND on belongs to the job, with or without "--".
_SETTINGS: Final = {"allow_interspersed_args": False}

_key_option = click.option(
    "--idempotency-key", metavar="KEY", help="The same key twice is one job.  [default: a new one for each run]"
)
_dry_run_option = click.option("--dry-run", is_flag=True, help="Print how the job would be launched, and end.")
_detach_option = click.option("-d", "--detach", is_flag=True, help="Print the job's id and leave it running.")


@click.command(
    "run",
    cls=Verb,
    context_settings=_SETTINGS,
    example="rnx job run --max-memory 64 --timeout 10m -- sh -c 'echo out; echo err >&2; exit 7'\n"
    "rnx run -d --name build --upload-dir ./project -- make all",
)
@job_options
@_detach_option
@click.option(
    "--on-interrupt",
    type=click.Choice([policy.value for policy in Policy]),
    default=Policy.STOP.value,
    show_default=True,
    help="What Ctrl-C does while attached. A second one always leaves at once.",
)
@_key_option
@_dry_run_option
@pass_invocation
def run_command(
    invocation: Invocation,
    /,
    *,
    detach: bool,
    on_interrupt: str,
    idempotency_key: str | None,
    dry_run: bool,
    **options: Any,
) -> int:
    """Run COMMAND as a job, with its output here.

    Without -d it stays attached: the job's stdout goes to stdout and its stderr to stderr, byte for byte, and rnx exits
    as the job did (128+n after signal n, 1 when it did not start). A job that has to wait is waited for.
    """
    return _run(
        invocation, RunOptions(**options), Policy(on_interrupt), idempotency_key, detach=detach, dry_run=dry_run
    )


@click.command(
    "start",
    cls=Verb,
    context_settings=_SETTINGS,
    example="id=$(rnx job start --name count -- seq 1000000)",
)
@job_options
@_detach_option
@_key_option
@_dry_run_option
@pass_invocation
def start_command(
    invocation: Invocation, /, *, detach: bool, idempotency_key: str | None, dry_run: bool, **options: Any
) -> int:
    """Start COMMAND as a job and print its id.

    The same as run --detach.
    """
    del detach  # that is what this command is
    return _run(invocation, RunOptions(**options), Policy.DETACH, idempotency_key, detach=True, dry_run=dry_run)


def _run(
    invocation: Invocation, options: RunOptions, policy: Policy, given_key: str | None, *, detach: bool, dry_run: bool
) -> int:
    spec = build_spec(options)
    key = new_idempotency_key() if given_key is None else parse_key(given_key, "idempotency key")
    sources = collect(options.upload, options.upload_dir)
    with invocation.session() as session:
        if dry_run:
            _print_plan(invocation, plan_job(session, spec))
            return Exit.OK
        if sources:
            with transfer_progress("uploading", total_bytes(sources)) as sent:
                spec.upload_ids.append(upload(session, sources, sent=sent))
        if detach:
            job = run_job(session, spec, idempotency_key=key)
            if invocation.json:
                print_json(job_object(job))
            else:
                print_line(job.id)
            return Exit.OK
        return _attached(session, spec, policy, key)


def _print_plan(invocation: Invocation, steps: tuple[str, ...]) -> None:
    if invocation.json:
        print_json({"steps": list(steps)})
        return
    for step in steps:
        print_line(step)


def _attached(session: Session, spec: job_pb2.JobSpec, policy: Policy, key: str) -> int:
    def end_job(job_id: str) -> None:
        if sys.stderr.isatty():
            tell(f"rnx: {policy.value} job {job_id}; Ctrl-C again leaves at once")
        _end_told(session, job_id, policy)

    with Interrupts(policy, end_job) as interrupts:
        try:
            job = run_job(session, spec, idempotency_key=key)
        except KeyboardInterrupt:
            tell(f"rnx: left before the node answered: the job may run, see `rnx job list` (idempotency key {key})")
            raise
        if (waiting := waiting_text(job)) and sys.stderr.isatty():
            tell(f"rnx: {waiting} (job {job.id})")
        request = job_pb2.StreamLogsRequest(job_id=job.id, follow=True)
        stream = LogStream(session, request, guard=interrupts.held)
        try:
            interrupts.job_started(job.id)
            stream.follow(attached_sink().write)
        except KeyboardInterrupt:
            _tell_left(job.id, stream)
            raise
        except OSError as error:
            # Whoever read the output has gone, or it cannot be written: that ends the job as an interrupt would.
            if not isinstance(error, BrokenPipeError):
                _tell_left(job.id, stream)
            if policy is not Policy.DETACH:
                _end_told(session, job.id, policy)
            raise
        interrupted = interrupts.count > 0
    assert stream.ended is not None
    tell_end(stream.ended)
    return Exit.INTERRUPTED if interrupted else exit_of_job(stream.ended)


def _tell_left(job_id: str, stream: LogStream) -> None:
    tell(f"rnx: left job {job_id}: go on with `rnx job log {job_id} --from-seq {stream.next_sequence}`")


def _end_told(session: Session, job_id: str, policy: Policy) -> None:
    """End the job; what hinders that is told. One that ended by itself meanwhile is what was wanted."""
    try:
        _end_job(session, job_id, policy)
    except JobletError as error:
        if error.reason not in (Reason.PRECONDITION, Reason.NOT_FOUND):
            tell(f"rnx: {error}")


def _end_job(session: Session, job_id: str, policy: Policy) -> None:
    if policy is Policy.KILL:
        stop_job(session, job_id, signal="SIGKILL", grace_ms=0)
    else:
        stop_job(session, job_id)


def tell_end(job: job_pb2.Job) -> None:
    """A line on stderr when a job ended in a way that its exit code does not tell."""
    match job.state:
        case job_pb2.TIMED_OUT:
            tell(f"rnx: job {job.id} reached its run time limit")
        case job_pb2.LOST:
            tell(f"rnx: job {job.id} was lost: its monitor died, so nobody knows how it ended")
        case job_pb2.CANCELED:
            tell(f"rnx: job {job.id} was canceled before it started")
        case _ if job.oom_killed:
            tell(f"rnx: job {job.id} ran out of memory and the kernel killed a process of it; see --max-memory")
        case job_pb2.FAILED if not job.HasField("exit_code") and not job.HasField("signal"):
            tell(f"rnx: job {job.id} failed: {job.reason or 'no reason was given'}")
        case _:
            pass
