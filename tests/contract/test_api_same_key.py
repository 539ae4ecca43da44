"""RunJob under idempotency keys, when nobody waits for the answer and when all ask at once: one job for a key."""

import asyncio
import random
from collections import Counter
from pathlib import Path
from typing import Any

import grpc
import pytest
from grpc import aio

from proto.joblet.v1 import job_pb2, job_pb2_grpc
from tests.security.middle import Middle, running_middle

SEED = 7


def request(key: str) -> job_pb2.RunJobRequest:
    """`true` under this key."""
    return job_pb2.RunJobRequest(spec=job_pb2.JobSpec(command="true", labels={"key": key}), idempotency_key=key)


def stubs(middle: Middle, count: int) -> tuple[list[aio.Channel], list[Any]]:
    """Connections of one caller, and JobService over each."""
    identity = middle.authority.client("ann", "user")
    channels = [middle.channel(identity) for _ in range(count)]
    return channels, [job_pb2_grpc.JobServiceStub(channel) for channel in channels]


async def keys_of_all_jobs(stub: Any) -> Counter[str]:
    """How many jobs each key has."""
    listed, token = Counter[str](), ""
    while True:
        page = await stub.ListJobs(job_pb2.ListJobsRequest(page_size=1000, page_token=token), timeout=30)
        listed.update(job.spec.labels["key"] for job in page.jobs)
        token = page.next_page_token
        if not token:
            return listed


@pytest.mark.threat("D23")
def test_a_job_exists_once_or_not_at_all_whatever_the_deadline(tmp_path: Path) -> None:
    """Three hundred runs with 0.5 to 20 ms each: none twice, and asked for again each key has its one job."""
    chance = random.Random(SEED)  # noqa: S311  # reproducible, not secret

    async def scenario() -> None:
        async with running_middle(tmp_path) as middle:
            channels, (stub, *_) = stubs(middle, 1)
            answered: dict[str, str] = {}
            failures: set[grpc.StatusCode] = set()
            for number in range(300):
                key = f"key-{number}"
                try:
                    answer = await stub.RunJob(request(key), timeout=chance.uniform(0.0005, 0.02))
                    answered[key] = answer.job.id
                except aio.AioRpcError as error:
                    failures.add(error.code())
            assert failures <= {grpc.StatusCode.DEADLINE_EXCEEDED}
            before = await keys_of_all_jobs(stub)
            assert set(before.values()) <= {1}
            assert set(answered) <= set(before)
            for number in range(300):
                key = f"key-{number}"
                again = await stub.RunJob(request(key), timeout=30)
                assert again.job.id == answered.get(key, again.job.id)
                assert again.existing or key not in answered
            assert await keys_of_all_jobs(stub) == Counter(f"key-{number}" for number in range(300))
            for channel in channels:
                await channel.close(None)

    asyncio.run(scenario())


@pytest.mark.threat("D24")
@pytest.mark.threat("D23")
def test_fifty_at_once_under_one_key_get_one_job(tmp_path: Path) -> None:
    """Over five connections, ten times: one of fifty has started it, all have its id, and it is there once."""

    async def scenario() -> None:
        async with running_middle(tmp_path) as middle:
            channels, callers = stubs(middle, 5)
            for number in range(10):
                key = f"key-{number}"
                answers = await asyncio.gather(
                    *(callers[turn % 5].RunJob(request(key), timeout=30) for turn in range(50))
                )
                assert len({answer.job.id for answer in answers}) == 1
                assert sum(not answer.existing for answer in answers) == 1
            assert await keys_of_all_jobs(callers[0]) == Counter(f"key-{number}" for number in range(10))
            for channel in channels:
                await channel.close(None)

    asyncio.run(scenario())
