"""`rnx job metrics`: a job's use of resources over time, as lines, JSON or a small plot.

Here: reading samples and showing them. Not here: sampling (the node).
"""

import shutil
from collections.abc import Iterable, Iterator, Sequence
from typing import Final

import click

from cli.client.jobs import get_job, stream_metrics
from cli.client.patience import RESUME_WINDOW_S, Patience
from cli.client.views import metric_object
from cli.rnx.commands import Verb
from cli.rnx.invocation import Invocation, pass_invocation
from cli.rnx.jobs import job_argument
from cli.rnx.show import pressure_text, traffic_text
from cli.rnx.tables import print_json
from cli.rnx.values import TIME
from common.errors import invalid
from common.quantities import format_size, format_time_ns
from proto.joblet.v1 import job_pb2, persist_pb2

BLOCKS: Final = "▁▂▃▄▅▆▇█"
_LINE: Final = "{:<30} {:>7} {:>11} {:>11} {:>11} {:>6}"
_HEADING: Final = _LINE.format("TIME", "CPU %", "MEMORY", "READ", "WRITTEN", "PIDS")
_LABEL_COLUMNS: Final = 40


@click.command(
    "metrics",
    cls=Verb,
    example="rnx job metrics 6fa459ea --since=1h --until=now --plot --no-follow\n"
    "rnx job metrics 6fa459ea --aggregate=avg",
)
@job_argument
@click.option("--since", type=TIME, help="From then on: RFC 3339, a duration back from now, or now.")
@click.option("--until", type=TIME, help="Before then.")
@click.option("--aggregate", type=click.Choice(("avg", "min", "max", "sum")), help="One sample for all of them.")
@click.option("--plot", is_flag=True, help="Draw them, once there are no more.")
@click.option("--follow/--no-follow", default=True, help="Go on live until the job ends.  [default: follow]")
@pass_invocation
def metrics_command(
    invocation: Invocation,
    *,
    job: str,
    since: int | None,
    until: int | None,
    aggregate: str | None,
    plot: bool,
    follow: bool,
) -> None:
    """Print a job's use of resources over time.

    CPU is since the sample before, memory and processes are at its time, I/O is since the job began. Behind them stands
    what not every job has: traffic since it began, and what it waited for in the last 10 s, in percent of the time.

    With --json one object a line. An aggregate is one sample of what is stored and does not follow.
    """
    if since is not None and until is not None and since >= until:
        raise invalid("--since is not before --until", "no time lies between them")
    with invocation.session() as session:
        request = job_pb2.StreamMetricsRequest(
            job_id=get_job(session, job, patience=Patience(RESUME_WINDOW_S)).id,
            start_time=since or 0,
            end_time=until or 0,
            aggregation=aggregate or "",
            follow=follow and not aggregate,
        )
        samples = stream_metrics(session, request)
        if invocation.json:
            for sample in samples:
                print_json(metric_object(sample))
        elif plot:
            for line in plot_lines(tuple(samples), columns=shutil.get_terminal_size().columns):
                click.echo(line)
        else:
            _print_lines(samples)


def _print_lines(samples: Iterable[persist_pb2.Metric]) -> None:
    click.echo(_HEADING)
    for sample in samples:
        figures = _LINE.format(
            format_time_ns(sample.timestamp),
            f"{sample.cpu_percent:.1f}",
            format_size(sample.memory_bytes),
            format_size(sample.io_read_bytes),
            format_size(sample.io_write_bytes),
            sample.pids,
        )
        click.echo("  ".join((figures, *_further(sample))))


def _further(sample: persist_pb2.Metric) -> Iterator[str]:
    traffic = traffic_text(sample.network_rx_bytes, sample.network_tx_bytes)
    if traffic:
        yield traffic
    waited = pressure_text(sample)
    if waited:
        yield f"waited for {waited}"


def plot_lines(samples: Sequence[persist_pb2.Metric], *, columns: int) -> tuple[str, ...]:
    """One line of blocks for CPU, memory and processes each, with the highest value behind it."""
    if not samples:
        return ("no samples",)
    width = max(columns - _LABEL_COLUMNS, 10)
    cpu = [sample.cpu_percent for sample in samples]
    memory = [float(sample.memory_bytes) for sample in samples]
    pids = [float(sample.pids) for sample in samples]
    return (
        f"{format_time_ns(samples[0].timestamp)} to {format_time_ns(samples[-1].timestamp)}, {len(samples)} samples",
        f"cpu     {blocks(cpu, width=width)} highest {max(cpu):.1f} %",
        f"memory  {blocks(memory, width=width)} highest {format_size(int(max(memory)))}",
        f"pids    {blocks(pids, width=width)} highest {max(pids):.0f}",
    )


def blocks(values: Sequence[float], *, width: int) -> str:
    """At most `width` block characters; each stands for the highest of its share of `values`, zero for the lowest."""
    count = min(width, len(values))
    shares = [values[index * len(values) // count : (index + 1) * len(values) // count] for index in range(count)]
    top = max(values)
    steps = len(BLOCKS) - 1
    return "".join(BLOCKS[round(max(share) / top * steps) if top > 0 else 0] for share in shares)
