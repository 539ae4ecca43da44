"""`worker-service start|stop|query|stream`: what each asks of the node, and its output letter for letter.

Here: the four commands of requirements S2.17 to S2.20. Not here: splitting words (`words.py`), calls and their
repetition (`cli/client`).
"""

import os

import click

from cli.client.escape import TerminalText
from cli.client.jobs import ENDED, get_job, new_idempotency_key, run_job, stop_and_wait
from cli.client.logs import STREAM_WORDS, LogStream, missing_text
from cli.front.output import STDOUT, print_line, tell, write_all
from cli.front.values import COUNT, DURATION, MEMORY, PERCENT, RATE, SIGNAL, SIZE, check_utf8
from cli.worker_service.commands import PROGRAM, Verb, WorkerConnection, flags, pass_connection
from cli.worker_service.words import MissingValue, UnknownOption, arguments, arranged
from proto.joblet.v1 import job_pb2

job_argument = click.argument("job", metavar="ID")


class Start(Verb):
    """A command whose last word may begin with a dash."""

    def parse_args(self, ctx: click.Context, args: list[str]) -> list[str]:
        """As click does, once it is clear which words are options."""
        options = [param for param in self.get_params(ctx) if isinstance(param, click.Option)]
        valued = {name for option in options if not option.is_flag for name in option.opts}
        bare = {name for option in options if option.is_flag for name in option.opts}
        try:
            words = arranged(args, valued=valued, bare=bare)
        except UnknownOption as unknown:
            raise click.UsageError(
                f"No such option {unknown.word!r}: did you mean {unknown.nearest}? Arguments stand behind --", ctx
            ) from unknown
        except MissingValue as missing:
            raise click.BadOptionUsage(missing.word, f"Option {missing.word!r} requires an argument", ctx) from missing
        return super().parse_args(ctx, words)


@click.command(
    "start",
    cls=Start,
    example='worker-service start -command "sort" "largefile.txt -o sortedfile.txt"\n'
    "worker-service start -cpu-percent 50 -memory 100MB -io-weight 500 -command sh \"-c 'echo out; exit 3'\"",
)
@click.option(*flags("command"), required=True, metavar="CMD", help="A path, or a name looked up in the job's PATH.")
@click.option(*flags("cpu-percent"), type=PERCENT, help="CPU: 150 is one core and a half.")
@click.option(*flags("memory"), type=MEMORY, help="Memory, swap included; a bare number is MB.")
@click.option(*flags("io-weight"), type=COUNT, help="Share of the disks, 1 to 10000; 100 is normal.")
@click.option(*flags("read-bps"), type=SIZE, help="Bytes that it reads from each disk in a second.")
@click.option(*flags("write-bps"), type=SIZE, help="Bytes that it writes to each disk in a second.")
@click.argument("words", nargs=-1, type=click.UNPROCESSED, metavar="[ARGS]")
@pass_connection
def start_command(
    connection: WorkerConnection,
    *,
    command: str,
    cpu_percent: int | None,
    memory: int | None,
    io_weight: int | None,
    read_bps: int | None,
    write_bps: int | None,
    words: tuple[str, ...],
) -> None:
    """Start a command as a job and print the job's id.

    ARGS is one string with all arguments: quotes and backslashes work in it as in a shell, and nothing else of a shell
    does: no variables, no patterns, no pipes.
    """
    if len(words) > 1:
        raise click.UsageError(f"ARGS is one string and here are {len(words)}: put quotes around them")
    args = arguments(words[0]) if words else ()
    check_utf8((command, *args))
    limits = job_pb2.Limits(
        cpu_percent=cpu_percent,
        memory_bytes=memory,
        io_weight=io_weight,
        read_bytes_per_s=read_bps,
        write_bytes_per_s=write_bps,
    )
    with connection.session() as session:
        spec = job_pb2.JobSpec(command=command, args=args, limits=limits)
        job = run_job(session, spec, idempotency_key=new_idempotency_key())
    print_line(f"job with id {job.id} started.")


@click.command("stop", cls=Verb, example="worker-service stop 6fa459ea\nworker-service stop -signal KILL 6fa459ea")
@job_argument
@click.option(*flags("signal"), type=SIGNAL, help="Name or number.  [default: the job's own, TERM]")
@click.option(*flags("grace"), type=DURATION, help="Until everything in it is killed.  [default: the job's own, 10s]")
@pass_connection
def stop_command(connection: WorkerConnection, *, job: str, signal: str | None, grace: int | None) -> None:
    """Stop a job, and say so when it has ended.

    It gets the signal; what is left of it after the grace period gets SIGKILL.
    """
    with connection.session() as session:
        ended = stop_and_wait(session, job, signal=signal or "", grace_ms=grace)
    print_line(f"Success! job with id {ended.id} stopped.")


@click.command("query", cls=Verb, example="worker-service query 6fa459ea")
@job_argument
@pass_connection
def query_command(connection: WorkerConnection, *, job: str) -> None:
    """Print whether a job is running or has stopped.

    What has not ended is running, also while it waits for its turn; what has ended in whatever way has stopped.
    """
    with connection.session() as session:
        found = get_job(session, job)
    print_line(f"job with id {found.id} {'has stopped' if found.state in ENDED else 'is running'}.")


@click.command("stream", cls=Verb, example="worker-service stream 6fa459ea")
@job_argument
@click.option(*flags("from-seq"), type=RATE, default=0, help="From this entry on.  [default: the first]")
@click.option(*flags("raw"), is_flag=True, help="Send control characters of the job to the terminal as they are.")
@pass_connection
def stream_command(connection: WorkerConnection, *, job: str, from_seq: int, raw: bool) -> None:
    """Print a job's output until the job has ended.

    First what is stored, then what comes; both streams in their order, byte for byte. On a terminal control characters
    are shown and not obeyed. What is missing is told on stderr.
    """
    texts = {stream: TerminalText() for stream in STREAM_WORDS} if os.isatty(STDOUT) and not raw else None

    def write(chunk: job_pb2.LogChunk) -> None:
        if chunk.HasField("gap"):
            tell(f"{PROGRAM}: {missing_text(chunk)}")
        else:
            write_all(STDOUT, chunk.data if texts is None else texts[chunk.stream].feed(chunk.data))

    with connection.session() as session:
        request = job_pb2.StreamLogsRequest(job_id=get_job(session, job).id, from_sequence=from_seq, follow=True)
        LogStream(session, request, go_on=f"{PROGRAM} stream -from-seq {{sequence}} {{job}}").follow(write)
    for text in (texts or {}).values():
        write_all(STDOUT, text.feed(b"", final=True))
