"""Many followers of one job in one process: `python -m tests.e2e.followers CONFIG JOB COUNT STALLED`.

Belongs here: a client that follows a job COUNT times over gRPC, and STALLED times more without ever reading, and prints
one JSON object for each reading follower: the SHA-256 of what it got and how the stream ended. Does not belong here:
judging. It is a process of its own so that no test process holds gRPC's threads.
"""

import hashlib
import json
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from cli.client.channel import prepare_environment

prepare_environment()

import grpc  # noqa: E402  # TLS 1.3 only holds when the environment was prepared before

from cli.client.channel import open_channel  # noqa: E402
from cli.client.contexts import Context, load_context  # noqa: E402
from proto.joblet.v1 import job_pb2, job_pb2_grpc  # noqa: E402

FOLLOWERS_PER_CHANNEL = 25


def follow(channel: grpc.Channel, job: str) -> dict[str, str | int]:
    """Read one stream to its end."""
    digest, entries, ended = hashlib.sha256(), 0, "cut off"
    call = job_pb2_grpc.JobServiceStub(channel).StreamLogs(job_pb2.StreamLogsRequest(job_id=job, follow=True))
    try:
        for response in call:
            for chunk in response.chunks:
                digest.update(chunk.data)
                entries += chunk.lines
            if response.HasField("ended"):
                ended = job_pb2.JobState.Name(response.ended.state)
    except grpc.RpcError as error:
        ended = str(error.code())
    return {"sha256": digest.hexdigest(), "entries": entries, "ended": ended}


def run(context: Context, job: str, count: int, stalled: int) -> list[dict[str, str | int]]:
    """All followers at once; the stalled ones stay connected until the others have ended."""
    channels = [open_channel(context) for _ in range(-(-(count + stalled) // FOLLOWERS_PER_CHANNEL))]
    request = job_pb2.StreamLogsRequest(job_id=job, follow=True)
    sleeping = [job_pb2_grpc.JobServiceStub(channels[0]).StreamLogs(request) for _ in range(stalled)]
    with ThreadPoolExecutor(max_workers=count) as pool:
        results = list(pool.map(lambda number: follow(channels[number % len(channels)], job), range(count)))
    for call in sleeping:
        call.cancel()  # type: ignore[no-untyped-call]  # grpcio's stubs leave it untyped
    for channel in channels:
        channel.close()
    return results


def main() -> None:
    """Print the results as one JSON array."""
    config, job, count, stalled = sys.argv[1:]
    sys.stdout.write(json.dumps(run(load_context(Path(config), "default"), job, int(count), int(stalled))))


if __name__ == "__main__":
    main()
