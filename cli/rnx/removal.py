"""`rnx job delete|delete-all`: remove ended jobs with all that is stored of them.

Here: asking before, and going on when one of many cannot be removed. Not here: what removing means (the node).
"""

import sys

import click

from cli.client.exits import EXIT_OF_REASON, Exit
from cli.client.jobs import ENDED, delete_job, list_jobs
from cli.client.session import Session
from cli.front.output import print_line, tell
from cli.rnx.commands import Verb
from cli.rnx.invocation import Invocation, pass_invocation
from cli.rnx.jobs import job_argument, label_option, owner_option
from cli.rnx.tables import print_json
from cli.rnx.values import pairs
from common.errors import JobletError, Reason


@click.command("delete", cls=Verb, example="rnx job delete 6fa459ea")
@job_argument
@pass_invocation
def delete_command(invocation: Invocation, *, job: str) -> None:
    """Remove an ended job with its logs and metrics."""
    with invocation.session() as session:
        deleted = delete_job(session, job)
    if invocation.json:
        print_json({"id": deleted})
    else:
        print_line(deleted)


@click.command(
    "delete-all", cls=Verb, example="rnx job delete-all --owner alice\nrnx job delete-all --label ci=yes --yes"
)
@owner_option
@label_option
@click.option("--yes", "-y", "sure", is_flag=True, help="Do not ask.")
@pass_invocation
def delete_all_command(invocation: Invocation, *, owner: str, label: tuple[str, ...], sure: bool) -> int:
    """Remove every ended job that matches.

    Running jobs stay. Asks first on a terminal.
    """
    labels = pairs(label, "--label")
    if not sure and not (sys.stdin.isatty() and sys.stderr.isatty()):
        raise click.UsageError("nobody can be asked here: give --yes to delete every ended job that matches")
    with invocation.session() as session:
        ids = [job.id for job in list_jobs(session, states=ENDED, owner=owner, labels=labels)]
        if ids and not sure:
            click.confirm(f"Delete {len(ids)} ended jobs with their logs and metrics?", abort=True, err=True)
        deleted, worst = _delete(session, ids)
    if invocation.json:
        print_json([*deleted])
    else:
        click.echo(f"deleted {len(deleted)} of {len(ids)} ended jobs")
    return worst


def _delete(session: Session, ids: list[str]) -> tuple[list[str], int]:
    """Which were deleted, and the exit code: of the last refusal, if any."""
    deleted, worst = [], int(Exit.OK)
    for job_id in ids:
        try:
            deleted.append(delete_job(session, job_id))
        except JobletError as error:
            if error.reason in (Reason.UNAVAILABLE, Reason.DEADLINE):
                raise
            if error.reason is not Reason.NOT_FOUND:  # gone already is what was wanted
                tell(f"rnx: {job_id}: {error}")
                worst = EXIT_OF_REASON[error.reason]
    return deleted, worst
