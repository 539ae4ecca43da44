"""`jobc start|stop|status|logs`: what each asks of the node, and when it prints what.

Here: the four commands of requirement S3.4. Not here: the letters of their output (`words.py`), calls and their
repetition (`cli/client`).
"""

import click

from cli.client.jobs import get_job, new_idempotency_key, run_job, stop_and_wait
from cli.client.logs import LogStream, missing_text
from cli.front.output import STDOUT, print_line, tell, write_all
from cli.front.values import DURATION, RATE, SIGNAL, check_utf8
from cli.jobc.commands import PROGRAM, JobcConnection, Verb, pass_connection
from cli.jobc.words import LogLines, remark, status_text
from proto.joblet.v1 import job_pb2

job_argument = click.argument("job", metavar="ID")


@click.command(
    "start",
    cls=Verb,
    # Everything from CMD on belongs to the job, with or without "--".
    context_settings={"allow_interspersed_args": False},
    example="jobc start sleep 60\njobc start ls -l /",
)
@click.argument("command", metavar="CMD")
@click.argument("args", nargs=-1, type=click.UNPROCESSED, metavar="[ARG]...")
@pass_connection
def start_command(connection: JobcConnection, *, command: str, args: tuple[str, ...]) -> None:
    """Start CMD and print its job's id.

    CMD is a path, or a name looked up in the job's PATH; no shell is involved. Everything behind it is CMD's, options
    too.
    """
    check_utf8((command, *args))
    with connection.session() as session:
        spec = job_pb2.JobSpec(command=command, args=args)
        print_line(run_job(session, spec, idempotency_key=new_idempotency_key()).id)


@click.command("stop", cls=Verb, example="jobc stop 6fa459ea\njobc stop --signal KILL 6fa459ea")
@job_argument
@click.option("--signal", type=SIGNAL, help="Name or number.  [default: the job's own, TERM]")
@click.option(
    "--grace", type=DURATION, help="Time until everything in the job is killed.  [default: the job's own, 10s]"
)
@pass_connection
def stop_command(connection: JobcConnection, *, job: str, signal: str | None, grace: int | None) -> None:
    """Stop a job, and return when it has ended.

    It gets the signal; what is left of it after the grace period gets SIGKILL. Prints nothing.
    """
    with connection.session() as session:
        stop_and_wait(session, job, signal=signal or "", grace_ms=grace)


@click.command("status", cls=Verb, example="jobc status 6fa459ea")
@job_argument
@pass_connection
def status_command(connection: JobcConnection, *, job: str) -> None:
    """Print how a job is: running, stopped (signal: 9) or finished (exit code: 0)."""
    with connection.session() as session:
        found = get_job(session, job)
    print_line(status_text(found))
    more = remark(found)
    if more:
        tell(f"{PROGRAM}: job {found.id}: {more}")


@click.command("logs", cls=Verb, example="jobc logs 6fa459ea\njobc logs 6fa459ea | jq -rj .log")
@job_argument
@click.option("--from-seq", type=RATE, default=0, help="From this entry on.  [default: the first]")
@pass_connection
def logs_command(connection: JobcConnection, *, job: str, from_seq: int) -> None:
    """Print a job's output as JSON objects, one a line, until the job has ended.

    First what is stored, then what comes; both streams in their order. What is missing is told on stderr.
    """
    lines = LogLines()

    def write(chunk: job_pb2.LogChunk) -> None:
        if chunk.HasField("gap"):
            write_all(STDOUT, lines.end().encode("ascii"))
            tell(f"{PROGRAM}: {missing_text(chunk)}")
        else:
            write_all(STDOUT, lines.of(chunk).encode("ascii"))

    with connection.session() as session:
        request = job_pb2.StreamLogsRequest(job_id=get_job(session, job).id, from_sequence=from_seq, follow=True)
        LogStream(session, request, go_on=f"{PROGRAM} logs --from-seq {{sequence}} {{job}}").follow(write)
    write_all(STDOUT, lines.end().encode("ascii"))
