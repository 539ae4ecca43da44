"""What the executor answers on its command endpoint: one handler a message. Raises JobletError; the bus carries it."""

import dataclasses
from collections.abc import Callable, Mapping
from typing import Final

from common.bus.requests import Handler
from common.errors import JobletError, Reason, invalid
from common.identifiers import new_job_id, parse_job_id, parse_job_reference, parse_key
from common.messages.envelope import Body
from common.messages.jobs import (
    TERMINAL,
    AttachVolume,
    CancelJob,
    DeleteJob,
    DetachVolume,
    GetJob,
    GetNode,
    JobAccepted,
    JobDeleted,
    JobFound,
    JobPage,
    JobPlan,
    JobRecord,
    JobSpec,
    ListJobs,
    LogSynced,
    NodeFacts,
    PlanJob,
    RunJob,
    State,
    StopJob,
    SyncLog,
)
from services.executor import job_pages
from services.executor.admission import check_secrets, check_stop
from services.executor.attaching import Attaching
from services.executor.events import Bounds, CancelRequested, StopRequested
from services.executor.job_store import JobStore
from services.executor.jobs import Jobs
from services.executor.live import Live
from services.executor.ports import Launches, Volumes
from services.executor.registry import Registry

OWNER_CHARACTERS_MAX: Final = 256
MARKER_CHARACTERS_MAX: Final = 128
"""Longer ones are refused: a marker is copied to every subscriber."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Commands:
    """The handlers and what they need."""

    jobs: Jobs
    registry: Registry
    store: JobStore
    live: Live
    launches: Launches
    volumes: Volumes
    attaching: Attaching
    admit: Callable[[JobSpec], JobSpec]
    check_room: Callable[[], None]
    node: Callable[[int], NodeFacts]
    clock_ns: Callable[[], int]

    def handlers(self) -> Mapping[type[Body], Handler]:
        """The handler of each command."""
        return {
            RunJob: self.run_job,
            PlanJob: self.plan_job,
            GetJob: self.get_job,
            ListJobs: self.list_jobs,
            StopJob: self.stop_job,
            CancelJob: self.cancel_job,
            DeleteJob: self.delete_job,
            SyncLog: self.sync_log,
            GetNode: self.get_node,
            AttachVolume: self.attach_volume,
            DetachVolume: self.detach_volume,
        }

    async def run_job(self, request: RunJob) -> Body:
        """Admit and record a job; its launch goes on behind the answer, or it waits."""
        _check_owner(request.owner)
        if request.idempotency_key:
            parse_key(request.idempotency_key, "idempotency key")
            known = await self.registry.by_key(request.owner, request.idempotency_key)
            if known is not None:  # before admission: its uploads are used up by now, and that is right
                return JobAccepted(job=self.jobs.view(known.record), existing=True)
        check_secrets(request.spec, request.secrets)
        spec = self.admit(request.spec)
        self.check_room()
        await self._check_volumes(request.owner, spec)
        bounds = Bounds(running_max=request.running_max, queued_max=request.queued_max)
        record, existing = await self.jobs.submit(request.owner, spec, request.idempotency_key, request.secrets, bounds)
        return JobAccepted(job=record, existing=existing)

    async def plan_job(self, request: PlanJob) -> Body:
        """Tell how a job would be launched. Nothing is recorded."""
        _check_owner(request.owner)
        record = JobRecord(
            id=new_job_id(),
            owner=request.owner,
            node_id="",
            state=State.PENDING,
            spec=self.admit(request.spec),
            created_at_ns=self.clock_ns(),
        )
        return JobPlan(steps=self.launches.describe(record))

    async def get_job(self, request: GetJob) -> Body:
        """One job."""
        job = self.registry.find(parse_job_reference(request.job), visible_owner=request.visible_owner)
        record = self.jobs.view(job.record)
        # The cursor goes when the end of the job is with persist; a running job that has none yet is not delivered.
        delivered = record.state in TERMINAL and not self.store.has_cursor(record.id)
        return JobFound(job=record, delivered=delivered)

    async def list_jobs(self, request: ListJobs) -> Body:
        """One page of jobs."""
        if len(request.labels) > job_pages.LABELS_MAX:
            raise invalid(f"{len(request.labels)} labels in a filter", f"use at most {job_pages.LABELS_MAX}")
        page = job_pages.page(self.store, request)
        return JobPage(
            jobs=self.jobs.views(self.registry.current(job).record for job in page.jobs),
            next_page_token=page.next_page_token,
        )

    async def stop_job(self, request: StopJob) -> Body:
        """Begin to stop a job."""
        check_stop(request.signal, request.grace_ms)
        event = StopRequested(at_ns=self.clock_ns(), signal=request.signal, grace_ms=request.grace_ms)
        return JobFound(job=self.jobs.request(parse_job_id(request.job), event))

    async def cancel_job(self, request: CancelJob) -> Body:
        """Withdraw a job that has not started."""
        event = CancelRequested(at_ns=self.clock_ns())
        return JobFound(job=self.jobs.request(parse_job_id(request.job), event))

    async def delete_job(self, request: DeleteJob) -> Body:
        """Forget an ended job."""
        job = parse_job_id(request.job)
        await self.jobs.delete(job)
        return JobDeleted(job=job)

    async def sync_log(self, request: SyncLog) -> Body:
        """Publish a marker behind all of the job's log that was published."""
        if not 0 < len(request.marker) <= MARKER_CHARACTERS_MAX:
            raise invalid("malformed marker", f"use 1 to {MARKER_CHARACTERS_MAX} characters")
        record = self.jobs.view(self.registry.load(parse_job_id(request.job)).record)
        self.live.marker(record.id, request.marker, record.last_sequence)
        return LogSynced(job=record.id)

    async def attach_volume(self, request: AttachVolume) -> Body:
        """Let a volume appear in a running job."""
        return JobFound(job=await self.attaching.attach(parse_job_id(request.job), request.mount))

    async def detach_volume(self, request: DetachVolume) -> Body:
        """Take a volume from a running job."""
        return JobFound(job=await self.attaching.detach(parse_job_id(request.job), request.volume, force=request.force))

    async def _check_volumes(self, owner: str, spec: JobSpec) -> None:
        """Refuse what would fail at the launch; of a job that starts later, what another job has may be free by then.

        A launch asks again: who else asks for the same volume meanwhile may be first.
        """
        try:
            await self.volumes.check(owner, spec.volumes)
        except JobletError as error:
            if error.reason is not Reason.PRECONDITION or spec.start_at_ns <= self.clock_ns():
                raise

    async def get_node(self, request: GetNode) -> Body:  # noqa: ARG002  # it has no fields
        """The node."""
        return self.node(self.jobs.waiting.running_jobs)


def _check_owner(owner: str) -> None:
    if not 0 < len(owner) <= OWNER_CHARACTERS_MAX or "\0" in owner:
        raise invalid(f"malformed owner {owner[:64]!r}", f"use 1 to {OWNER_CHARACTERS_MAX} characters without NUL")
