"""`rnx job list|status|wait|stop|cancel`: commands that ask about jobs or end them.

Here: their options and what they print. Not here: running (`run.py`), logs (`log.py`), deleting (`removal.py`).
"""

import click

from cli.client.exits import exit_of_job
from cli.client.jobs import cancel_job, get_job, list_jobs, stop_job, wait_job
from cli.client.views import job_object, state_of_word, state_word, state_words
from cli.front.output import print_line
from cli.front.values import DURATION, SIGNAL
from cli.rnx.commands import Verb
from cli.rnx.invocation import Invocation, pass_invocation
from cli.rnx.run import tell_end
from cli.rnx.show import JOB_HEADINGS, QUEUE, job_fields, job_row
from cli.rnx.tables import print_fields, print_json, print_table, used_columns
from cli.rnx.values import pairs
from proto.joblet.v1 import job_pb2

LIST_LIMIT = 100

job_argument = click.argument("job", metavar="ID")
state_option = click.option(
    "--state", multiple=True, type=click.Choice(state_words(), case_sensitive=False), help="In this state. Repeatable."
)
owner_option = click.option("--owner", default="", metavar="CN", help="Of this owner.")
label_option = click.option("--label", multiple=True, metavar="K=V", help="With this label. Repeatable: with all.")


@click.command("list", cls=Verb, example="rnx job list --state running --label app=web\nrnx job list --all --json")
@state_option
@owner_option
@label_option
@click.option("--limit", type=click.IntRange(min=1), default=LIST_LIMIT, show_default=True, help="At most so many.")
@click.option("--all", "everything", is_flag=True, help="However many there are.")
@pass_invocation
def list_command(
    invocation: Invocation, *, state: tuple[str, ...], owner: str, label: tuple[str, ...], limit: int, everything: bool
) -> None:
    """Jobs, newest first. With --json one array of the objects that status prints."""
    states = [state_of_word(word) for word in state]
    labels = pairs(label, "--label")
    with invocation.session() as session:
        jobs = list_jobs(session, states=states, owner=owner, labels=labels, limit=None if everything else limit)
        if invocation.json:
            print_json([job_object(job) for job in jobs])
        else:
            print_table(*used_columns(JOB_HEADINGS, [job_row(job) for job in jobs], sometimes={QUEUE}))


@click.command("status", cls=Verb, example="rnx job status 6fa459ea\nrnx job status 6fa459ea --json | jq .exit_code")
@job_argument
@pass_invocation
def status_command(invocation: Invocation, *, job: str) -> None:
    """Everything known about a job. ID is its full id, or any unique beginning of 8 characters or more."""
    with invocation.session() as session:
        _print_job(invocation, get_job(session, job))


@click.command("wait", cls=Verb, example="rnx job wait 6fa459ea && echo it worked")
@job_argument
@pass_invocation
def wait_command(invocation: Invocation, *, job: str) -> int:
    """Wait until a job has ended, and exit as it did."""
    with invocation.session() as session:
        ended = wait_job(session, job)
    if invocation.json:
        print_json(job_object(ended))
    tell_end(ended)
    return exit_of_job(ended)


@click.command("stop", cls=Verb, example="rnx job stop 6fa459ea\nrnx job stop 6fa459ea --signal INT --grace 30s")
@job_argument
@click.option("--signal", type=SIGNAL, metavar="S", help="Name or number.  [default: the job's own]")
@click.option("--grace", type=DURATION, help="Time until everything in the job is killed.  [default: the job's own]")
@pass_invocation
def stop_command(invocation: Invocation, *, job: str, signal: str | None, grace: int | None) -> None:
    """Ask a job to stop.

    After the grace period every process of it is killed. Does not wait for the end.
    """
    with invocation.session() as session:
        _print_outcome(invocation, stop_job(session, job, signal=signal or "", grace_ms=grace))


@click.command("cancel", cls=Verb, example="rnx job cancel 6fa459ea")
@job_argument
@pass_invocation
def cancel_command(invocation: Invocation, *, job: str) -> None:
    """Withdraw a job that waits for its time or for its turn."""
    with invocation.session() as session:
        _print_outcome(invocation, cancel_job(session, job))


def _print_job(invocation: Invocation, job: job_pb2.Job) -> None:
    if invocation.json:
        print_json(job_object(job))
    else:
        print_fields(job_fields(job))


def _print_outcome(invocation: Invocation, job: job_pb2.Job) -> None:
    if invocation.json:
        print_json(job_object(job))
    else:
        # Asked to stop and not ended yet: "running" would read as if nothing had happened.
        stopping = job.state in (job_pb2.STARTING, job_pb2.RUNNING)
        print_line(f"{job.id} {'stopping' if stopping else state_word(job.state)}")
