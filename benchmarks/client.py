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
from proto.joblet.v1 import (  # noqa: E402
    job_pb2,
    job_pb2_grpc,
    persist_pb2,
    persist_pb2_grpc,
    volume_pb2,
    volume_pb2_grpc,
)

CALL_TIMEOUT_S = 120.0
READ_TIMEOUT_S = 1800.0
"""A log of 10 GB, on a slow machine."""
UPLOAD_BYTES = 512 * 1024


class Client:
    """Calls about jobs over one channel."""

    def __init__(self, channel: grpc.Channel) -> None:
        self._stub = job_pb2_grpc.JobServiceStub(channel)
        self._persist = persist_pb2_grpc.PersistServiceStub(channel)
        self._volumes = volume_pb2_grpc.VolumeServiceStub(channel)

    def run(self, *command: str, work_bytes: int | None = None, upload: Path | None = None, volume: str = "") -> str:
        """Start a job; its id. It finds `upload`, a file, in /work under its name, and `volume` in /volumes."""
        spec = job_pb2.JobSpec(command=command[0], args=command[1:], work_bytes=work_bytes)
        if volume:
            spec.volumes.append(job_pb2.VolumeMount(name=volume))
        if upload is not None:
            uploaded = self._stub.UploadFiles(_parts_of(upload), timeout=CALL_TIMEOUT_S)
            spec.upload_ids.append(uploaded.upload_id)
        request = job_pb2.RunJobRequest(spec=spec)
        return self._stub.RunJob(request, timeout=CALL_TIMEOUT_S).job.id

    def wait(self, job: str) -> job_pb2.Job:
        """The job when it has ended."""
        return self._stub.WaitJob(job_pb2.WaitJobRequest(job_id=job), timeout=READ_TIMEOUT_S)

    def output_of(self, *command: str, volume: str = "") -> bytes:
        """What a job prints, when it has ended and nobody has its volume any more."""
        job = self.run(*command, volume=volume)
        printed = b"".join(chunk.data for chunk in self.output(job))
        deadline = time.monotonic() + CALL_TIMEOUT_S
        while volume and self._volumes.GetVolume(volume_pb2.GetVolumeRequest(name=volume)).uses:
            if time.monotonic() > deadline:
                raise TimeoutError(f"volume {volume} is not let go")
        return printed

    def create_volume(self, name: str, size_bytes: int) -> None:
        """A new volume."""
        request = volume_pb2.CreateVolumeRequest(name=name, size_bytes=size_bytes)
        self._volumes.CreateVolume(request, timeout=CALL_TIMEOUT_S)

    def remove_volume(self, name: str) -> None:
        """Nothing of it is left."""
        self._volumes.DeleteVolume(volume_pb2.DeleteVolumeRequest(name=name), timeout=CALL_TIMEOUT_S)

    def stop(self, job: str) -> None:
        """Kill the job and wait for its end."""
        self._stub.StopJob(job_pb2.StopJobRequest(job_id=job, signal="SIGKILL", grace_ms=0), timeout=CALL_TIMEOUT_S)
        self.wait(job)

    def output(self, job: str, *, follow: bool = True) -> Iterator[job_pb2.LogChunk]:
        """Every chunk of the job's output."""
        return self.stream(job_pb2.StreamLogsRequest(job_id=job, follow=follow))

    def stream(self, request: job_pb2.StreamLogsRequest) -> Iterator[job_pb2.LogChunk]:
        """Every chunk that StreamLogs gives. Leaving early ends the call."""
        call = self._stub.StreamLogs(request, timeout=READ_TIMEOUT_S)
        try:
            for response in call:
                yield from response.chunks
        finally:
            call.cancel()  # type: ignore[no-untyped-call]  # in its stubs

    def batches(self, request: persist_pb2.LogBatchQueryRequest) -> Iterator[persist_pb2.LogBatch]:
        """Every batch that QueryLogBatches gives. Leaving early ends the call."""
        call = self._persist.QueryLogBatches(request, timeout=READ_TIMEOUT_S)
        try:
            for response in call:
                yield from response.batches
        finally:
            call.cancel()  # type: ignore[no-untyped-call]  # in its stubs

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


def _parts_of(file: Path) -> Iterator[job_pb2.UploadFilesRequest]:
    entry = job_pb2.UploadEntry(
        path=file.name, kind=job_pb2.UploadEntry.FILE, mode=0o644, size_bytes=file.stat().st_size
    )
    yield job_pb2.UploadFilesRequest(entry=entry)
    with file.open("rb") as content:
        while data := content.read(UPLOAD_BYTES):
            yield job_pb2.UploadFilesRequest(data=data)


@contextmanager
def connected(config: Path) -> Iterator[Client]:
    """A client whose connection is made, so that the first measured call does not pay for it."""
    with open_channel(load_context(config, "default")) as channel:
        grpc.channel_ready_future(channel).result(timeout=CALL_TIMEOUT_S)
        yield Client(channel)
