"""Clients with a certificate each that follow one job: `python -m tests.security.rotation_followers FILE`.

FILE holds JSON: address, ca, job, and identities, a list of {cert, key}. Every half second a line on stdout tells how
many entries each has got, and when one ends, how. A process of its own, so that no test process holds gRPC's threads.
"""

import asyncio
import hashlib
import json
import sys
import time
from pathlib import Path
from typing import Any

from cli.client.channel import prepare_environment

prepare_environment()

import grpc  # noqa: E402  # TLS 1.3 only holds when the environment was prepared before
from grpc import aio  # noqa: E402

from proto.joblet.v1 import job_pb2, job_pb2_grpc  # noqa: E402

TOLD_EVERY_S = 0.5


def say(**what: Any) -> None:
    """One line for the test."""
    sys.stdout.write(json.dumps(what) + "\n")
    sys.stdout.flush()


async def follow(number: int, given: dict[str, Any], counts: list[int]) -> None:
    """One client: one connection, one stream, to its end."""
    identity = given["identities"][number]
    credentials = grpc.ssl_channel_credentials(
        given["ca"].encode(), private_key=identity["key"].encode(), certificate_chain=identity["cert"].encode()
    )
    options = (("grpc.use_local_subchannel_pool", 1), ("grpc.enable_http_proxy", 0))
    digest, ended, text, in_order = hashlib.sha256(), "cut off", "", True
    async with aio.secure_channel(given["address"], credentials, options=options) as channel:
        request = job_pb2.StreamLogsRequest(job_id=given["job"], follow=True)
        try:
            async for response in job_pb2_grpc.JobServiceStub(channel).StreamLogs(request):
                for chunk in response.chunks:
                    in_order = in_order and chunk.first_sequence == counts[number] + 1
                    digest.update(chunk.data)
                    counts[number] += chunk.lines
                if response.HasField("ended"):
                    ended = job_pb2.JobState.Name(response.ended.state)
        except aio.AioRpcError as error:
            ended, text = error.code().name, error.details() or ""
    say(
        client=number,
        ended=ended,
        text=text,
        at_s=time.time(),
        entries=counts[number],
        in_order=in_order,
        sha256=digest.hexdigest(),
    )


async def tell(counts: list[int]) -> None:
    """How far each is, again and again."""
    while True:
        say(counts=counts)
        await asyncio.sleep(TOLD_EVERY_S)


async def main() -> None:
    """All of them at once."""
    given = json.loads(Path(sys.argv[1]).read_text())  # noqa: ASYNC240  # before anything else runs
    counts = [0] * len(given["identities"])
    telling = asyncio.create_task(tell(counts))
    await asyncio.gather(*(follow(number, given, counts) for number in range(len(counts))))
    telling.cancel()


if __name__ == "__main__":
    asyncio.run(main())
