"""Streams of output through the real server: stored and live as one, exact, once, in order; and what disturbs them."""

import asyncio
from pathlib import Path
from typing import Any

import pytest

from common import records
from common.messages import jobs
from proto.joblet.v1 import job_pb2, persist_pb2
from tests.api_node import Client, running_node
from tests.waiting import await_for


async def collect(client: Client, job: str, **fields: Any) -> tuple[list[tuple[int, bytes]], job_pb2.Job | None]:
    """Every chunk of a stream until its end: (first sequence, data), and the ended job."""
    chunks, ended = [], None
    async for message in client.jobs.StreamLogs(job_pb2.StreamLogsRequest(job_id=job, **fields), timeout=30):
        chunks += [(chunk.first_sequence, chunk.data) for chunk in message.chunks]
        ended = message.ended if message.HasField("ended") else ended
    return chunks, ended


def text(chunks: list[tuple[int, bytes]]) -> bytes:
    """The bytes of chunks in the order they came."""
    return b"".join(data for _, data in chunks)


@pytest.mark.requirement("S3.13")
def test_stored_output_then_live_output_then_the_ended_job(tmp_path: Path) -> None:
    """A follower of a running job gets what was written before it came, what is written then, and the end."""

    async def scenario() -> None:
        async with running_node(tmp_path) as node:
            client = node.client("ann", "user")
            run = await client.jobs.RunJob(job_pb2.RunJobRequest(spec=job_pb2.JobSpec(command="sh")))
            job = run.job.id
            node.executor.write(job, b"one\ntwo\n", publish=False)
            following = asyncio.create_task(collect(client, job, follow=True))
            await await_for(lambda: node.persist.queries, what="the history query")
            node.executor.write(job, b"three\n\0\xff\n")
            node.executor.write(job, b"no line end", stream=records.Stream.STDERR)
            node.executor.finish(job)
            chunks, ended = await following
            assert text(chunks) == b"one\ntwo\nthree\n\0\xff\nno line end"
            assert ended is not None
            assert ended.state == job_pb2.COMPLETED
            assert ended.last_sequence == 5
            assert (await client.jobs.GetJob(job_pb2.GetJobRequest(job_id=job[:8]))).id == job

    asyncio.run(scenario())
