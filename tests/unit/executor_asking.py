"""What tests of the executor's middle ask a node again and again.

Belongs here: short cuts over `executor_fakes.Node`. Does not belong here: any claim.
"""

from typing import Any

from common.identifiers import JobId
from common.messages.jobs import (
    GetJob,
    JobAccepted,
    JobFound,
    JobRecord,
    JobSpec,
    RunJob,
    State,
)
from tests.unit.executor_fakes import FakeMonitor, Node
from tests.waiting import await_for


async def launched(node: Node, **request: Any) -> tuple[JobId, FakeMonitor]:
    """A job that was launched, and its monitor."""
    asked = RunJob(**{"owner": "ann", "spec": JobSpec(command="true"), **request})
    job = (await node.ask.request(asked, JobAccepted)).job.id
    await await_for(lambda: job in node.host.monitors, what="the launch")
    return job, node.host.monitors[job]


async def got(node: Node, job: JobId) -> JobRecord:
    """The job's record."""
    return (await node.ask.request(GetJob(job=job, visible_owner=None), JobFound)).job


async def in_state(node: Node, job: JobId, state: State) -> JobRecord:
    """The job's record as soon as it is in `state`."""

    async def there() -> JobRecord | None:
        record = await got(node, job)
        return record if record.state is state else None

    found = await await_for(there, what=f"state {state}")
    assert found is not None
    return found


def flipped(data: bytes, position: int) -> bytes:
    """The same with one bit of one byte changed."""
    return data[:position] + bytes([data[position] ^ 1]) + data[position + 1 :]


def numbered(first: int, last: int) -> bytes:
    """Lines of numbers."""
    return b"".join(b"%d\n" % n for n in range(first, last + 1))
