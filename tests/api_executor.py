"""The executor as the api's tests need it: records in a dictionary, publications as the contract says.

It keeps the rules that the api relies on (one in-band marker, sequences without a hole) and can be told to break what
may break: to lose a publication or an event.
"""

import json
from collections.abc import Mapping
from typing import Any

import msgspec

from common import records
from common.bus.events import Publisher
from common.bus.memory import Memory
from common.bus.requests import Responder
from common.errors import not_found, precondition
from common.identifiers import JobId, new_job_id
from common.messages import jobs, logs, topics
from common.messages.envelope import Body
from tests.api_persist import FakePersist
from tests.api_volumes import FakeVolumes


class FakeExecutor:
    """Keeps jobs in a dictionary and publishes like the real one. `requests` is what it was asked, in order."""

    def __init__(self, transport: Memory, persist: FakePersist) -> None:
        self.jobs: dict[JobId, jobs.JobRecord] = {}
        self.requests: list[Body] = []
        self.persist = persist
        self.losing = False
        self.delivered: set[JobId] = set()
        self.counters: dict[str, int] = {}
        self.volumes: FakeVolumes | None = None
        self.busy = False  # detaching needs force
        self._keys: dict[tuple[str, str], JobId] = {}
        self._publisher = Publisher(transport)
        handlers: Mapping[type[Body], Any] = {
            jobs.RunJob: self._run,
            jobs.PlanJob: self._plan,
            jobs.GetJob: self._get,
            jobs.ListJobs: self._list,
            jobs.StopJob: self._stop,
            jobs.CancelJob: self._cancel,
            jobs.DeleteJob: self._delete,
            jobs.SyncLog: self._sync,
            jobs.GetNode: self._node,
            jobs.AttachVolume: self._attach,
            jobs.DetachVolume: self._detach,
        }
        self._responder = Responder(transport, topics.EXECUTOR_COMMANDS, topics.API_REPLIES, handlers)

    async def run(self) -> None:
        """Answer for ever."""
        await self._responder.run()

    async def close(self) -> None:
        """Stop answering and publishing."""
        await self._responder.close()
        self._publisher.close()

    def add(self, owner: str, **fields: Any) -> jobs.JobRecord:
        """A job that runs already."""
        job = new_job_id()
        fields.setdefault("spec", jobs.JobSpec(command="true"))
        fields.setdefault("state", jobs.State.RUNNING)
        self.jobs[job] = jobs.JobRecord(
            id=job, owner=owner, node_id="node-1", created_at_ns=len(self.jobs) + 1, **fields
        )
        return self.jobs[job]

    def change(self, job: JobId, *, announce: bool = True, **fields: Any) -> None:
        """A new version of a record, published."""
        self.jobs[job] = msgspec.structs.replace(self.jobs[job], **fields)
        if announce:
            self._publisher.publish(topics.job_topic(job), jobs.JobChanged(job=self.jobs[job]))

    def write(
        self,
        job: JobId,
        data: bytes,
        *,
        stream: records.Stream = records.Stream.STDOUT,
        time_ns: int = 1_700_000_000 * 10**9,
        publish: bool = True,
        store: bool = True,
    ) -> None:
        """The job writes `data`: whole lines, or one piece without a line end."""
        first = self.jobs[job].last_sequence + 1
        partial = not data.endswith(b"\n")
        lines = 1 if partial else data.count(b"\n")
        flags = records.Flags.PARTIAL if partial else records.Flags.NONE
        record = records.encode(
            records.RecordType.OUTPUT, data, time_ns=time_ns, sequence=first, lines=lines, stream=stream, flags=flags
        )
        self.jobs[job] = msgspec.structs.replace(self.jobs[job], last_sequence=first + lines - 1)
        if publish:
            self.publish_log(job, record)
        if store:
            self.persist.store(job, record)

    def lose(self, job: JobId, lines: int, reason: str, *, lost_bytes: int = 0) -> None:
        """A GAP record stands for what the job wrote."""
        first = self.jobs[job].last_sequence + 1
        record = records.encode(
            records.RecordType.GAP,
            json.dumps({"reason": reason, "bytes": lost_bytes}).encode(),
            time_ns=1_700_000_000 * 10**9,
            sequence=first,
            lines=lines,
        )
        self.jobs[job] = msgspec.structs.replace(self.jobs[job], last_sequence=first + lines - 1)
        self.publish_log(job, record)
        self.persist.store(job, record)

    def publish_log(self, job: JobId, payload: bytes) -> None:
        """Records on the job's topic."""
        self._publisher.publish(topics.log_topic(job), logs.LogRecords(job=job, records=payload))

    def publish_metric(self, sample: logs.StoreMetric) -> None:
        """A live sample."""
        self._publisher.publish(topics.metrics_topic(sample.job), sample)

    def finish(self, job: JobId, **fields: Any) -> None:
        """The job exits by itself."""
        fields.setdefault("state", jobs.State.COMPLETED)
        fields.setdefault("exit_code", 0)
        self.change(job, ended_at_ns=9, **fields)

    async def _run(self, request: jobs.RunJob) -> Body:
        self.requests.append(request)
        key = (request.owner, request.idempotency_key)
        if request.idempotency_key and key in self._keys:
            return jobs.JobAccepted(job=self.jobs[self._keys[key]], existing=True)
        record = self.add(request.owner, spec=request.spec)
        self._keys[key] = record.id
        return jobs.JobAccepted(job=record)

    async def _plan(self, request: jobs.PlanJob) -> Body:
        self.requests.append(request)
        return jobs.JobPlan(steps=("one", "two"))

    async def _get(self, request: jobs.GetJob) -> Body:
        found = [
            record
            for record in self.jobs.values()
            if record.id.startswith(request.job) and request.visible_owner in {None, record.owner}
        ]
        if len(found) != 1:
            raise not_found(f"no job {request.job}")
        return jobs.JobFound(job=found[0], delivered=found[0].id in self.delivered)

    async def _list(self, request: jobs.ListJobs) -> Body:
        found = [
            record
            for record in reversed(self.jobs.values())
            if request.visible_owner in {None, record.owner}
            and request.owner in {"", record.owner}
            and (not request.states or record.state in request.states)
            and request.labels.items() <= record.spec.labels.items()
        ]
        start = int(request.page_token or 0)
        end = start + request.page_size
        return jobs.JobPage(jobs=tuple(found[start:end]), next_page_token=str(end) if end < len(found) else "")

    async def _stop(self, request: jobs.StopJob) -> Body:
        self.requests.append(request)
        if self.jobs[request.job].state in jobs.TERMINAL:
            raise precondition("the job has ended")
        self.change(request.job, stop_requested_at_ns=5)
        return jobs.JobFound(job=self.jobs[request.job])

    async def _cancel(self, request: jobs.CancelJob) -> Body:
        self.requests.append(request)
        return jobs.JobFound(job=self.jobs[request.job])

    async def _delete(self, request: jobs.DeleteJob) -> Body:
        self.requests.append(request)
        record = self.jobs.pop(request.job)
        self._publisher.publish(topics.job_topic(request.job), jobs.JobChanged(job=record, deleted=True))
        return jobs.JobDeleted(job=request.job)

    async def _sync(self, request: jobs.SyncLog) -> Body:
        if request.job not in self.jobs:
            raise not_found(f"no job {request.job}")
        last = self.jobs[request.job].last_sequence
        self._publisher.publish(
            topics.log_topic(request.job), logs.LogMarker(job=request.job, marker=request.marker, last_sequence=last)
        )
        return jobs.LogSynced(job=request.job)

    async def _attach(self, request: jobs.AttachVolume) -> Body:
        self.requests.append(request)
        record = self._running(request.job)
        assert self.volumes is not None
        for volume in self.volumes.volumes.values():
            if (volume.owner, volume.name) == (record.owner, request.mount.name):
                self.volumes.use(volume.id, record.id, request.mount.path, read_only=request.mount.read_only)
                return jobs.JobFound(job=record)
        raise not_found(f"no volume {request.mount.name}")

    async def _detach(self, request: jobs.DetachVolume) -> Body:
        self.requests.append(request)
        record = self._running(request.job)
        if self.busy and not request.force:
            raise precondition(f"volume {request.volume} is busy in job {record.id}", "end what uses it, or force it")
        assert self.volumes is not None
        self.volumes.leave(record.id, request.volume)
        return jobs.JobFound(job=record)

    def _running(self, job: JobId) -> jobs.JobRecord:
        record = self.jobs.get(job)
        if record is None:
            raise not_found(f"no job {job}")
        if record.state is not jobs.State.RUNNING:
            raise precondition("the job does not run")
        return record

    async def _node(self, request: jobs.GetNode) -> Body:
        self.requests.append(request)
        return jobs.NodeFacts(
            node_id="node-1",
            version="0.1.0",
            kernel="6.18",
            cgroup_version="v2",
            cpus=2,
            memory_bytes=2**32,
            running_jobs=len(self.jobs),
            capabilities=(jobs.Capability(name="limit.memory", level="enforced"),),
            counters=self.counters,
            queued_jobs=sum(record.state is jobs.State.PENDING for record in self.jobs.values()),
            running_max=7,
        )
