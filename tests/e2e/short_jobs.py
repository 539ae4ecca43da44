"""Jobs that are over in a moment, each followed from that moment on: `python -m tests.e2e.short_jobs CONFIG COUNT`.

Belongs here: starting COUNT jobs one right after the other, some at a time, and following each as soon as it has an
id; one JSON object for each tells what the stream gave. Does not belong here: judging. It is a process of its own so
that no test process holds gRPC's threads.
"""

import json
import sys
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path
from typing import Final

from cli.client.channel import prepare_environment

prepare_environment()

import grpc  # noqa: E402  # TLS 1.3 only holds when the environment was prepared before

from cli.client.channel import open_channel  # noqa: E402
from cli.client.contexts import load_context  # noqa: E402
from proto.joblet.v1 import job_pb2, job_pb2_grpc  # noqa: E402

AT_ONCE: Final = 4
TIMEOUT_S: Final = 100.0
SCRIPT: Final = (
    "sleep 0.0$(($0 % 5)); i=0; while [ $i -le $(($0 % 3)) ]; do echo $0 $i; i=$((i + 1)); done; exit $((1 + $0 % 100))"
)
"""Prints one to three lines and ends with a code of its own, at once or a little later."""


def one(channel: grpc.Channel, number: int) -> dict[str, str | int]:
    """Run a job and follow it."""
    stub = job_pb2_grpc.JobServiceStub(channel)
    spec = job_pb2.JobSpec(command="sh", args=("-c", SCRIPT, str(number)))
    job = stub.RunJob(job_pb2.RunJobRequest(spec=spec), timeout=TIMEOUT_S).job.id
    data, ended, after = b"", job_pb2.Job(), 0
    for response in stub.StreamLogs(job_pb2.StreamLogsRequest(job_id=job, follow=True), timeout=TIMEOUT_S):
        after += ended.state != job_pb2.JOB_STATE_UNSPECIFIED
        data += b"".join(chunk.data for chunk in response.chunks)
        if response.HasField("ended"):
            ended = response.ended
    return {
        "number": number,
        "data": data.decode(),
        "ended": job_pb2.JobState.Name(ended.state),
        "exit_code": ended.exit_code,
        "last_sequence": ended.last_sequence,
        "messages_after_the_end": after,
    }


def main() -> None:
    """Print the results as one JSON array."""
    config, count = sys.argv[1:]
    with (
        open_channel(load_context(Path(config), "default")) as channel,
        ThreadPoolExecutor(max_workers=AT_ONCE) as pool,
    ):
        sys.stdout.write(json.dumps(list(pool.map(partial(one, channel), range(int(count))))))


if __name__ == "__main__":
    main()
