"""`rnx job log`: stored output, then live output until the job ends.

Here: which entries and how they are shown. Not here: resuming (`cli/client/logs.py`), writing (`sink.py`).
"""

import os

import click

from cli.client.jobs import get_job
from cli.client.logs import LogStream
from cli.client.patience import RESUME_WINDOW_S, Patience
from cli.front.output import STDOUT
from cli.front.values import RATE
from cli.rnx.commands import Verb
from cli.rnx.invocation import Invocation, pass_invocation
from cli.rnx.jobs import job_argument
from cli.rnx.sink import JsonSink, Sink, TextSink, stored_sink
from cli.rnx.values import TIME
from common.errors import invalid
from proto.joblet.v1 import job_pb2


@click.command(
    "log",
    cls=Verb,
    example="rnx job log 6fa459ea --tail 20\n"
    'rnx job log 6fa459ea --stream=stderr --since=1h --filter="ERROR" --no-follow\n'
    "rnx job log 6fa459ea --grep='^(GET|POST) .* 5[0-9][0-9]$' --offset 100 --limit 50",
)
@job_argument
@click.option("--stream", type=click.Choice(("stdout", "stderr")), help="Only this one.  [default: both]")
@click.option("--filter", "text", default="", metavar="TEXT", help="Only entries that contain this text.")
@click.option(
    "--grep",
    "pattern",
    default="",
    metavar="REGEX",
    help="Only entries in which this regular expression matches (RE2 syntax, evaluated on the node).",
)
@click.option("--since", type=TIME, help="From then on: RFC 3339, a duration back from now, or now.")
@click.option("--until", type=TIME, help="Before then.")
@click.option("--tail", type=RATE, help="Of what is stored only the last N entries.")
@click.option("--from-seq", type=RATE, default=0, help="From this sequence on.")
@click.option("--offset", type=RATE, default=0, help="Pass over the first N of them.")
@click.option("--limit", type=RATE, default=0, help="End after N entries.")
@click.option("--timestamps", is_flag=True, help="The time before each line.")
@click.option("--follow/--no-follow", default=True, help="Go on live until the job ends.  [default: follow]")
@click.option("--raw", is_flag=True, help="Send control characters of the job to the terminal as they are.")
@pass_invocation
def log_command(
    invocation: Invocation,
    *,
    job: str,
    stream: str | None,
    text: str,
    pattern: str,
    since: int | None,
    until: int | None,
    tail: int | None,
    from_seq: int,
    offset: int,
    limit: int,
    timestamps: bool,
    follow: bool,
    raw: bool,
) -> None:
    """Print a job's output, stored and live.

    First what is stored, then what comes until the job ends; both streams to stdout in their order. What is missing is
    told on stderr: which entries, where they were lost and why.

    Elsewhere than on a terminal the bytes are exactly the job's. With --json one object an entry: sequence, timestamp
    (Unix nanoseconds), stream, content or content_b64, and partial where no line end follows.
    """
    if since is not None and until is not None and since >= until:
        raise invalid("--since is not before --until", "no time lies between them")
    if text and pattern:
        raise click.UsageError("--filter and --grep exclude each other: say it all in one regular expression")
    if tail is not None and offset:
        raise click.UsageError("--tail and --offset exclude each other: one counts from the end")
    sink = _sink(invocation, timestamps=timestamps, raw=raw)
    with invocation.session() as session:
        request = job_pb2.StreamLogsRequest(
            job_id=get_job(session, job, patience=Patience(RESUME_WINDOW_S)).id,
            stream=stream.upper() if stream else None,
            from_sequence=from_seq,
            tail=tail,
            start_time=since or 0,
            end_time=until or 0,
            filter=text,
            regex=pattern,
            offset=offset,
            limit=limit,
            follow=follow,
        )
        LogStream(session, request).follow(sink.write)
    sink.finish()


def _sink(invocation: Invocation, *, timestamps: bool, raw: bool) -> Sink:
    if invocation.json:
        return JsonSink()
    escaped = os.isatty(STDOUT) and not raw
    if escaped or timestamps:
        return TextSink(escaped=escaped, timestamps=timestamps)
    return stored_sink()
