"""The client side of the benchmarks: a warm gRPC channel to the node, and the calls that are measured.

Belongs here: thin calls without a command line around them, because what is measured is the node and not the start of
an interpreter. Does not belong here: what is measured.
"""

import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from cli.client.channel import prepare_environment

prepare_environment()

import grpc  # noqa: E402  # TLS 1.3 only holds when the environment was prepared before

from cli.client.channel import open_channel  # noqa: E402
from cli.client.contexts import load_context  # noqa: E402
from proto.joblet.v1 import job_pb2, job_pb2_grpc  # noqa: E402

CALL_TIMEOUT_S = 120.0


class Client:
    """Calls about jobs over one channel."""

    def __init__(self, channel: grpc.Channel) -> None:
        self._stub = job_pb2_grpc.JobServiceStub(channel)

    def run(self, *command: str, work_bytes: int | None = None) -> str:
        """Start a job; its id."""
        spec = job_pb2.JobSpec(command=command[0], args=command[1:], work_bytes=work_bytes)
        request = job_pb2.RunJobRequest(spec=spec)
        return self._stub.RunJob(request, timeout=CALL_TIMEOUT_S).job.id

    def wait(self, job: str) -> job_pb2.Job:
        """The job when it has ended."""
        return self._stub.WaitJob(job_pb2.WaitJobRequest(job_id=job), timeout=CALL_TIMEOUT_S)

    def stop(self, job: str) -> None:
        """Kill the job and wait for its end."""
        self._stub.StopJob(job_pb2.StopJobRequest(job_id=job, signal="SIGKILL", grace_ms=0), timeout=CALL_TIMEOUT_S)
        self.wait(job)

    def output(self, job: str, *, follow: bool = True) -> Iterator[job_pb2.LogChunk]:
        """Every chunk of the job's output."""
        request = job_pb2.StreamLogsRequest(job_id=job, follow=follow)
        for response in self._stub.StreamLogs(request, timeout=CALL_TIMEOUT_S):
            yield from response.chunks

    def state(self, job: str) -> job_pb2.JobState:
        """The job's state now."""
        return self._stub.GetJob(job_pb2.GetJobRequest(job_id=job), timeout=CALL_TIMEOUT_S).state

    def until_running(self, job: str) -> None:
        """Wait until the job runs; TimeoutError when it does not."""
        deadline = time.monotonic() + CALL_TIMEOUT_S
        while self.state(job) in (job_pb2.PENDING, job_pb2.STARTING):
            if time.monotonic() > deadline:
                raise TimeoutError(f"job {job} does not start")
            time.sleep(0.005)


@contextmanager
def connected(config: Path) -> Iterator[Client]:
    """A client whose connection is made, so that the first measured call does not pay for it."""
    with open_channel(load_context(config, "default")) as channel:
        grpc.channel_ready_future(channel).result(timeout=CALL_TIMEOUT_S)
        yield Client(channel)
