"""What can be asked of JobService, as typed functions over a session.

Here: requests, paging and which calls are repeated. Not here: output (`views.py`), log streams (`logs.py`), uploads
(`uploads.py`). All raise JobletError.
"""

import uuid
from collections.abc import Iterator, Mapping, Sequence
from typing import Final

from cli.client.patience import RESUME_WINDOW_S, START_WINDOW_S, Patience
from cli.client.session import Session
from common.errors import JobletError
from common.identifiers import parse_job_reference
from proto.joblet.v1 import job_pb2, persist_pb2

PAGE_SIZE: Final = 1000
ENDED: Final = (
    job_pb2.COMPLETED,
    job_pb2.FAILED,
    job_pb2.STOPPED,
    job_pb2.TIMED_OUT,
    job_pb2.LOST,
    job_pb2.CANCELED,
)


def new_idempotency_key() -> str:
    """A key that no other run has."""
    return f"rnx-{uuid.uuid4()}"


def run_job(
    session: Session, spec: job_pb2.JobSpec, *, idempotency_key: str, patience: Patience | None = None
) -> job_pb2.Job:
    """Start a job once, however often the connection breaks meanwhile: each attempt bears the same key."""
    assert idempotency_key
    request = job_pb2.RunJobRequest(spec=spec, idempotency_key=idempotency_key)
    return session.ask_again(session.jobs.RunJob, request, patience=patience or Patience(START_WINDOW_S)).job


def plan_job(session: Session, spec: job_pb2.JobSpec) -> tuple[str, ...]:
    """The steps by which the node would launch it."""
    return tuple(session.ask_again(session.jobs.PlanJob, job_pb2.PlanJobRequest(spec=spec)).steps)


def get_job(session: Session, reference: str, *, patience: Patience | None = None) -> job_pb2.Job:
    """The job with this id or unique prefix."""
    request = job_pb2.GetJobRequest(job_id=_reference(reference))
    return session.ask_again(session.jobs.GetJob, request, patience=patience)


def list_jobs(
    session: Session,
    *,
    states: Sequence[job_pb2.JobState] = (),
    owner: str = "",
    labels: Mapping[str, str] | None = None,
    limit: int | None = None,
) -> Iterator[job_pb2.Job]:
    """Jobs, newest first, page by page as they are consumed; at most `limit` of them, None: all."""
    left, token = limit, ""
    filter_ = job_pb2.JobFilter(states=states, owner=owner, labels=labels or {})
    while left is None or left > 0:
        size = PAGE_SIZE if left is None else min(PAGE_SIZE, left)
        request = job_pb2.ListJobsRequest(filter=filter_, page_size=size, page_token=token)
        page = session.ask_again(session.jobs.ListJobs, request)
        jobs = page.jobs if left is None else page.jobs[:left]
        yield from jobs
        left = None if left is None else left - len(jobs)
        token = page.next_page_token
        if not token:
            return


def stop_job(session: Session, reference: str, *, signal: str = "", grace_ms: int | None = None) -> job_pb2.Job:
    """Ask a job to end; it has not ended yet when this returns."""
    request = job_pb2.StopJobRequest(job_id=_reference(reference), signal=signal, grace_ms=grace_ms)
    return session.ask_again(session.jobs.StopJob, request)


def stop_and_wait(session: Session, reference: str, *, signal: str = "", grace_ms: int | None = None) -> job_pb2.Job:
    """Ask a job to end, and return it when it has: after its grace period at the latest."""
    job = stop_job(session, reference, signal=signal, grace_ms=grace_ms)
    return job if job.state in ENDED else wait_job(session, job.id)


def cancel_job(session: Session, reference: str) -> job_pb2.Job:
    """Withdraw a job that has not started."""
    return session.ask(session.jobs.CancelJob, job_pb2.CancelJobRequest(job_id=_reference(reference)))


def wait_job(session: Session, reference: str, *, patience: Patience | None = None) -> job_pb2.Job:
    """The job when it has ended; survives restarts of the node's services."""
    patience = patience or Patience(RESUME_WINDOW_S)
    job_id = get_job(session, reference, patience=patience).id
    request = job_pb2.WaitJobRequest(job_id=job_id)
    while True:
        try:
            with session.translated():
                return session.jobs.WaitJob(request, timeout=session.remaining_s())
        except JobletError as error:
            patience.bear(error)


def delete_job(session: Session, reference: str) -> str:
    """Remove an ended job with its logs and metrics; its full id."""
    return session.ask(session.jobs.DeleteJob, job_pb2.DeleteJobRequest(job_id=_reference(reference))).job_id


def watch_jobs(session: Session) -> Iterator[job_pb2.WatchJobsResponse]:
    """The current jobs, then every change, until the caller closes the iterator."""
    with session.translated():
        call = session.jobs.WatchJobs(job_pb2.WatchJobsRequest(), timeout=session.remaining_s())
        try:
            yield from call
        finally:
            session.cancel(call)


def stream_metrics(
    session: Session, request: job_pb2.StreamMetricsRequest, *, patience: Patience | None = None
) -> Iterator[persist_pb2.Metric]:
    """Samples as the request says, until the caller closes it. A broken stream goes on behind the last one."""
    patience = patience or Patience(RESUME_WINDOW_S)
    wanted = job_pb2.StreamMetricsRequest()
    wanted.CopyFrom(request)
    while True:
        try:
            for sample in _metrics_of_one_call(session, wanted):
                patience.progress()
                wanted.start_time = sample.timestamp + 1
                yield sample
                if request.aggregation:
                    return  # it is the only one, and has no behind
            return
        except JobletError as error:
            patience.bear(error)


def _metrics_of_one_call(session: Session, request: job_pb2.StreamMetricsRequest) -> Iterator[persist_pb2.Metric]:
    with session.translated():
        call = session.jobs.StreamMetrics(request, timeout=session.remaining_s())
        try:
            yield from call
        finally:
            session.cancel(call)


def _reference(text: str) -> str:
    return parse_job_reference(text.strip().lower())
