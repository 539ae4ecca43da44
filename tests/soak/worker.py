"""The client of the soak: `python -m tests.soak.worker CONFIG JOBS SEED [KIND …]`.

Belongs here: what short jobs there are, running them 8 at a time over one gRPC channel, and checking how each ended; in
the end all are deleted when they are told to be by a line on standard input. Does not belong here: what is left on the
host. It is a process of its own so that no test process holds gRPC's threads. Progress goes to stderr; stdout has one
JSON line a phase.
"""

import json
import random
import sys
import time
from collections import Counter
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Final, NamedTuple

from cli.client.channel import prepare_environment

prepare_environment()

import grpc  # noqa: E402  # TLS 1.3 only holds when the environment was prepared before

from cli.client.channel import open_channel  # noqa: E402
from cli.client.contexts import load_context  # noqa: E402
from proto.joblet.v1 import job_pb2, job_pb2_grpc  # noqa: E402

AT_ONCE: Final = 8
PROGRESS_JOBS: Final = 1000
CALL_S_MAX: Final = 120.0
GRACE_MS: Final = 100
SIGKILL: Final = 9


class Kind(NamedTuple):
    """One sort of short job. `share`: how many of a hundred are of it; `exits`: the code that it must end with."""

    name: str
    share: int
    script: str
    exits: int = 0
    pids: int | None = None
    network: job_pb2.NetworkMode = job_pb2.NONE
    stopped: bool = False  # it never ends by itself, and ignores the stop signal


KINDS: Final = (
    Kind("true", 38, ""),
    Kind("exit code", 12, "exit 42", 42),
    Kind("output", 8, "seq 1 200; echo last >&2"),
    Kind(
        "double forks",
        14,
        "for n in 1 2 3; do (setsid sh -c 'trap \"\" TERM HUP; sleep 1000 & sleep 1000' & ) ; done; setsid sleep 1000 &"
        " exit 3",
        3,
    ),
    Kind("fork bomb", 10, "bomb() { while :; do bomb & done; }; bomb", 2, pids=20),  # what dash says: Cannot fork
    Kind(
        "files",
        8,
        "head -c 200000 /dev/zero >/tmp/f; mkdir -p /tmp/a/b/c; mkfifo /work/p; ln -s / /tmp/l; echo x >/dev/shm/s;"
        " exec 9</tmp/f; sleep 1000 & rm /tmp/f",
    ),
    Kind("killed", 2, "kill -9 $$", -SIGKILL),
    Kind("cannot start", 2, "", -1),
    Kind(
        "stubborn",
        6,
        "trap '' TERM INT; (trap '' TERM; setsid sleep 1000 &); while :; do sleep 1000; done",
        stopped=True,
    ),
)
NETWORKED: Final = (
    Kind("isolated network", 1, "cat /proc/net/dev", network=job_pb2.ISOLATED),
    Kind("bridge network", 1, "cat /proc/net/dev", network=job_pb2.BRIDGE),
)


class Ended(NamedTuple):
    """How one job went: its kind, and what was wrong; "" when all was right."""

    kind: str
    wrong: str


class Soak:
    """Jobs over one channel."""

    def __init__(self, channel: grpc.Channel) -> None:
        self._stub = job_pb2_grpc.JobServiceStub(channel)

    def offered(self, kind: Kind) -> bool:
        """Whether this node has what the kind needs; a job of it is run to find out."""
        try:
            return not self.run(kind).wrong
        except grpc.RpcError as error:
            if error.code() in (grpc.StatusCode.FAILED_PRECONDITION, grpc.StatusCode.UNIMPLEMENTED):
                return False
            raise

    def run(self, kind: Kind) -> Ended:
        """One job from its start to its end."""
        command = ("/nonexistent",) if kind.name == "cannot start" else ("sh", "-c", kind.script)
        spec = job_pb2.JobSpec(
            command=command[0] if kind.script or kind.exits else "true",
            args=command[1:] if kind.script else (),
            limits=job_pb2.Limits(pids=kind.pids),
            network=kind.network,
        )
        job = self._stub.RunJob(job_pb2.RunJobRequest(spec=spec), timeout=CALL_S_MAX).job
        if kind.stopped:
            self._stub.StopJob(job_pb2.StopJobRequest(job_id=job.id, grace_ms=GRACE_MS), timeout=CALL_S_MAX)
        ended = self._stub.WaitJob(job_pb2.WaitJobRequest(job_id=job.id), timeout=CALL_S_MAX)
        return Ended(kind.name, _judge(kind, ended))

    def delete_all(self) -> int:
        """Delete every job of the caller; how many there were."""
        jobs = list(self._ids())
        with ThreadPoolExecutor(AT_ONCE) as pool:
            delete: Callable[[str], object] = lambda job: self._stub.DeleteJob(  # noqa: E731
                job_pb2.DeleteJobRequest(job_id=job), timeout=CALL_S_MAX
            )
            for _ in pool.map(delete, jobs):
                pass
        return len(jobs)

    def _ids(self) -> Iterator[str]:
        token = ""
        while True:
            page = self._stub.ListJobs(job_pb2.ListJobsRequest(page_size=1000, page_token=token), timeout=CALL_S_MAX)
            yield from (job.id for job in page.jobs)
            token = page.next_page_token
            if not token:
                return


def _judge(kind: Kind, job: job_pb2.Job) -> str:
    """What is wrong with the end of a job; "" for nothing."""
    state = job_pb2.JobState.Name(job.state)
    told = f"{kind.name}: {job.id} {state} exit {job.exit_code} signal {job.signal} {job.reason}"
    if kind.stopped:
        # It may have been stopped before its trap was set, or before it was started at all.
        return "" if state == "STOPPED" else told
    if kind.name == "cannot start":
        return "" if state == "FAILED" and "not found" in job.reason else told
    if kind.exits < 0:
        return "" if state == "FAILED" and job.signal == -kind.exits else told
    right = state == ("FAILED" if kind.exits else "COMPLETED") and job.exit_code == kind.exits
    return "" if right else told


def main() -> None:
    """Run JOBS jobs, tell the summary, wait for a line, delete them all, and tell that."""
    config, count, seed = Path(sys.argv[1]), int(sys.argv[2]), int(sys.argv[3])
    with open_channel(load_context(config, "default")) as channel:
        soak = Soak(channel)
        kinds = (*KINDS, *(kind for kind in NETWORKED if soak.offered(kind)))
        chosen = random.Random(seed).choices(kinds, [kind.share for kind in kinds], k=count)  # noqa: S311  # no secret
        began, wrong, counted = time.monotonic(), [], Counter[str]()
        with ThreadPoolExecutor(AT_ONCE) as pool:
            for number, ended in enumerate(pool.map(soak.run, chosen), 1):
                counted[ended.kind] += 1
                wrong += [ended.wrong] if ended.wrong else []
                if number % PROGRESS_JOBS == 0:
                    rate = number / (time.monotonic() - began)
                    sys.stderr.write(f"{number} jobs, {rate:.0f}/s, {len(wrong)} ended wrongly\n")
        seconds = time.monotonic() - began
        _tell(jobs=count, seconds=round(seconds, 1), per_s=round(count / seconds, 1), kinds=counted, wrong=wrong[:20])
        sys.stdin.readline()
        _tell(deleted=soak.delete_all())


def _tell(**what: object) -> None:
    sys.stdout.write(json.dumps(what) + "\n")
    sys.stdout.flush()


if __name__ == "__main__":
    main()
