"""What the operator's program asks the running node over gRPC: is it healthy, what can it do, stop all jobs.

`python -m cli.joblet.node health|stop-jobs --config FILE` is how the supervisor asks: a process of its own, so that
the supervisor, which starts processes all its life, never holds gRPC's threads.
"""

import argparse
import sys
import time
from pathlib import Path
from typing import Final

from cli.client.channel import prepare_environment

prepare_environment()

import grpc  # noqa: E402  # TLS 1.3 only holds when the environment was prepared before
from grpc_health.v1 import health_pb2, health_pb2_grpc  # noqa: E402

from cli.client.channel import open_channel  # noqa: E402
from cli.client.contexts import Context, load_context  # noqa: E402
from cli.client.errors import translate  # noqa: E402
from cli.client.jobs import list_jobs  # noqa: E402
from cli.client.session import Session  # noqa: E402
from common.errors import JobletError, Reason, unavailable  # noqa: E402
from proto.joblet.v1 import job_pb2, node_pb2  # noqa: E402

HEALTH_TIMEOUT_S: Final = 20.0
STOP_TIMEOUT_S: Final = 60.0
_LIVE: Final = (job_pb2.SCHEDULED, job_pb2.PENDING, job_pb2.STARTING, job_pb2.RUNNING)


def check_health(context: Context, *, timeout_s: float = HEALTH_TIMEOUT_S) -> None:
    """Return when the node answers SERVING. Raises JobletError when it does not in time, or answers otherwise."""
    with open_channel(context) as channel:
        stub = health_pb2_grpc.HealthStub(channel)
        try:
            answer = stub.Check(health_pb2.HealthCheckRequest(), timeout=timeout_s, wait_for_ready=True)
        except grpc.RpcError as error:
            raise translate(error, context) from error
    if answer.status != health_pb2.HealthCheckResponse.SERVING:
        word = health_pb2.HealthCheckResponse.ServingStatus.Name(answer.status)
        raise unavailable(f"the node at {context.address} says {word}", "see the services' log")


def node_info(context: Context) -> node_pb2.NodeInfo:
    """What the node is and can do. Raises JobletError."""
    with Session(context) as session:
        return session.ask(session.nodes.GetInfo, node_pb2.GetInfoRequest())


def stop_jobs(context: Context, *, timeout_s: float = STOP_TIMEOUT_S) -> int:
    """Stop every job that runs or waits, and wait until all have ended. How many there were. Raises JobletError."""
    deadline = time.monotonic() + timeout_s
    with Session(context, timeout_s=timeout_s) as session:
        found = list(list_jobs(session, states=_LIVE))
        for job in found:
            try:
                session.ask(session.jobs.StopJob, job_pb2.StopJobRequest(job_id=job.id))
            except JobletError as error:
                if error.reason not in {Reason.NOT_FOUND, Reason.PRECONDITION}:  # it ended meanwhile
                    raise
        for job in found:
            with session.translated():
                session.jobs.WaitJob(
                    job_pb2.WaitJobRequest(job_id=job.id), timeout=max(0.1, deadline - time.monotonic())
                )
    return len(found)


def main() -> None:
    """One question; the answer is the exit code, and one line on stdout or stderr."""
    parser = argparse.ArgumentParser(prog="python -m cli.joblet.node")
    parser.add_argument("question", choices=("health", "stop-jobs"))
    parser.add_argument("--config", type=Path, required=True)
    parser.add_argument("--node", default="default")
    arguments = parser.parse_args()
    try:
        context = load_context(arguments.config, arguments.node)
        if arguments.question == "health":
            check_health(context)
            sys.stdout.write("serving\n")
        else:
            sys.stdout.write(f"{stop_jobs(context)} jobs stopped\n")
    except JobletError as error:
        sys.stderr.write(f"{error}\n")
        raise SystemExit(1) from None


if __name__ == "__main__":
    main()
