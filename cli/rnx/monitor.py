"""`rnx monitor`: a live view of the jobs and the node.

Here: keeping the current jobs from WatchJobs in a thread, their latest samples, and drawing. Not here: any decision
about jobs. Elsewhere than on a terminal it prints one view and ends.
"""

import threading
import time
from collections.abc import Iterable, Sequence
from contextlib import suppress
from typing import Final

import click
from rich.console import Console, Group
from rich.live import Live

from cli.client.jobs import ENDED, list_jobs, stream_metrics, watch_jobs
from cli.client.patience import RESUME_WINDOW_S, Patience
from cli.client.session import Session
from cli.client.views import job_object, state_word
from cli.rnx.commands import Verb
from cli.rnx.invocation import Invocation, pass_invocation
from cli.rnx.show import QUEUE, command_text, exit_text, pressure_text, queue_text
from cli.rnx.tables import cell, make_table, print_json, print_table, stdout_console, used_columns
from common.errors import JobletError, Reason, unavailable
from common.quantities import format_duration_ms, format_size
from proto.joblet.v1 import job_pb2, node_pb2, persist_pb2

REFRESH_S: Final = 1.0
SAMPLED_JOBS_MAX: Final = 20
KEPT_JOBS_MAX: Final = 1000
_SAMPLE_AGE_NS: Final = 30 * 1_000_000_000
_HEADINGS: Final = (
    *("ID", "NAME", "OWNER", "STATE", QUEUE, "EXIT", "TIME", "CPU %", "MEMORY", "PIDS"),
    *("DISK", "TRAFFIC", "WAITED", "COMMAND"),
)
_SOMETIMES: Final = frozenset({QUEUE, "DISK", "TRAFFIC", "WAITED"})
"""Columns that are left out while nobody has anything in them."""
_ID_CHARACTERS: Final = 8
_WAITING: Final = (job_pb2.SCHEDULED, job_pb2.PENDING)


class Board:
    """The jobs as they are now: filled by the watching thread, read by the drawing one."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._jobs: dict[str, job_pb2.Job] = {}
        self.failure: JobletError | None = None

    def apply(self, change: job_pb2.WatchJobsResponse) -> None:
        """One change. Beyond KEPT_JOBS_MAX the oldest ended jobs are let go."""
        with self._lock:
            self._jobs.pop(change.job.id, None)
            if not change.deleted:
                self._jobs[change.job.id] = change.job
            if len(self._jobs) > KEPT_JOBS_MAX:
                oldest = next((job.id for job in self._jobs.values() if job.state in ENDED), None)
                if oldest is not None:
                    del self._jobs[oldest]

    def jobs(self) -> list[job_pb2.Job]:
        """Those that run first, then those that wait, then the others; of each the newest first."""
        with self._lock:
            jobs = list(self._jobs.values())
        jobs.sort(key=lambda job: job.created_at.ToNanoseconds(), reverse=True)
        jobs.sort(key=lambda job: 2 if job.state in ENDED else job.state in _WAITING)
        return jobs

    def begin(self, jobs: Iterable[job_pb2.Job]) -> None:
        """These jobs and no others: what was deleted while nobody watched is told by nobody."""
        fresh = {job.id: job for job in jobs}
        with self._lock:
            self._jobs = fresh

    def watch(self, session: Session, patience: Patience) -> None:
        """The thread: until the stream breaks and cannot be taken up again."""
        while self.failure is None:
            try:
                self.begin(reversed(list(list_jobs(session, limit=KEPT_JOBS_MAX))))
                for change in watch_jobs(session):
                    patience.progress()
                    self.apply(change)
                raise unavailable("the node ended the watch", "ask again")
            except JobletError as error:
                try:
                    patience.bear(error)
                except JobletError as final:
                    self.failure = final


@click.command("monitor", cls=Verb, example="rnx monitor")
@pass_invocation
def monitor_command(invocation: Invocation) -> None:
    """A live view of the jobs and the node.

    Fills the screen; Ctrl-C leaves. It lives through a restart of the node's services. Elsewhere than on a terminal it
    prints one view and ends.
    """
    console = stdout_console()
    with invocation.session() as session:
        if invocation.json:
            print_json([job_object(job) for job in list_jobs(session, limit=KEPT_JOBS_MAX)])
        elif console.is_terminal and not console.is_dumb_terminal:
            _follow(session, console)
        else:
            jobs = list(list_jobs(session, limit=KEPT_JOBS_MAX))
            print_table(*shown_columns([row(job, None, now_ns=time.time_ns()) for job in jobs]))


def _follow(session: Session, console: Console) -> None:
    board = Board()
    patience = Patience(RESUME_WINDOW_S)
    threading.Thread(target=board.watch, args=(session, patience), name="watch", daemon=True).start()
    head = away = ""
    with Live(console=console, screen=True, auto_refresh=False) as live:
        while board.failure is None:
            try:
                head, away = _head(session.ask(session.nodes.GetInfo, node_pb2.GetInfoRequest())), ""
            except JobletError as error:
                if error.reason is not Reason.UNAVAILABLE:
                    raise
                # How long to bear it is the watch's to say; the jobs of before stay in view meanwhile.
                away = f"as it was before: {error.message}; trying again"
            live.update(_view(session, board, head, away, rows_max=max(console.height - 4, 1)), refresh=True)
            time.sleep(REFRESH_S)
    raise board.failure


def _head(node: node_pb2.NodeInfo) -> str:
    return (
        f"{node.node_id}  joblet {node.version}  kernel {node.kernel}  {node.cpus} cpus  "
        f"{format_size(node.memory_bytes)}  {node.running_jobs} running  {node.queued_jobs} waiting"
    )


def _view(session: Session, board: Board, head: str, away: str, *, rows_max: int) -> Group:
    jobs = board.jobs()
    running = [job for job in jobs if job.state == job_pb2.RUNNING and not away][:SAMPLED_JOBS_MAX]
    samples = {job.id: _latest_sample(session, job.id) for job in running}
    now_ns = time.time_ns()
    rows = [row(_placeless(job), samples.get(job.id), now_ns=now_ns) for job in jobs[:rows_max]]
    return Group(cell(head), cell(away), make_table(*shown_columns(rows)))


def _placeless(job: job_pb2.Job) -> job_pb2.Job:
    """Nobody tells when a job moves up: the place that came with it would be shown long after it was true."""
    if not job.queue_position:
        return job
    without = job_pb2.Job()
    without.CopyFrom(job)
    without.ClearField("queue_position")
    return without


def shown_columns(rows: Sequence[tuple[str, ...]]) -> tuple[tuple[str, ...], list[tuple[str, ...]]]:
    """Headings and rows without the columns that nobody needs now."""
    return used_columns(_HEADINGS, rows, sometimes=_SOMETIMES)


def _latest_sample(session: Session, job_id: str) -> persist_pb2.Metric | None:
    """The newest sample; None when there is none, or the node does not keep any."""
    request = job_pb2.StreamMetricsRequest(job_id=job_id, start_time=time.time_ns() - _SAMPLE_AGE_NS)
    latest = None
    with suppress(JobletError):  # the job may have gone meanwhile; a broken connection shows in the watch itself
        for latest in stream_metrics(session, request, patience=Patience(0)):  # noqa: B007  # the last one is wanted
            pass
    return latest


def row(job: job_pb2.Job, sample: persist_pb2.Metric | None, *, now_ns: int) -> tuple[str, ...]:
    """Under the headings of the view."""
    until_ns = job.ended_at.ToNanoseconds() if job.HasField("ended_at") else now_ns
    ran_ms = (until_ns - job.started_at.ToNanoseconds()) // 1_000_000 if job.HasField("started_at") else None
    return (
        job.id[:_ID_CHARACTERS],
        job.name or job.spec.name,
        job.owner,
        state_word(job.state),
        queue_text(job),
        exit_text(job),
        "" if ran_ms is None else format_duration_ms(max(ran_ms // 1000 * 1000, 0)),
        "" if sample is None else f"{sample.cpu_percent:.1f}",
        "" if sample is None else format_size(sample.memory_bytes),
        "" if sample is None else str(sample.pids),
        "" if sample is None else _total(sample.io_read_bytes + sample.io_write_bytes),
        "" if sample is None else _total(sample.network_rx_bytes + sample.network_tx_bytes),
        "" if sample is None else pressure_text(sample),
        command_text(job),
    )


def _total(size_bytes: int) -> str:
    return format_size(size_bytes) if size_bytes else ""
