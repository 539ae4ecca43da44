"""The operator's limits, the node's network and the host's, as clients meet them: through the real server and rnx."""

import asyncio
import json
import os
import sys
from pathlib import Path

import grpc
import pytest
import yaml
from grpc import aio

from common.config.settings import Jobs, LimitBounds, LimitPolicy, LimitValues, RoleLimits
from common.messages import jobs
from proto.joblet.v1 import job_pb2
from tests.api_node import Client, Node, running_node
from tests.waiting import SLOWNESS

REPOSITORY = Path(__file__).parents[2]
MIB = 2**20
POLICY = LimitPolicy(
    default=LimitValues(cpu_percent=50, memory_bytes=100 * MIB, io_weight=500),
    max=LimitValues(memory_bytes=200 * MIB, open_files=4096),
    roles=RoleLimits(
        writer=LimitBounds(max=LimitValues(memory_bytes=400 * MIB)),
        user=LimitBounds(default=LimitValues(cpu_percent=20), max=LimitValues(cpu_percent=100, cpu_cores="0-1")),
    ),
)


def request(**limits: object) -> job_pb2.RunJobRequest:
    """`true` with these limits."""
    return job_pb2.RunJobRequest(
        spec=job_pb2.JobSpec(command="true", limits=job_pb2.Limits(**limits))  # type: ignore[arg-type]
    )


async def refusal(client: Client, asked: job_pb2.RunJobRequest) -> tuple[grpc.StatusCode, str]:
    """Status and text of RunJob, which are those of PlanJob, too."""
    found = []
    for call in (client.jobs.RunJob(asked), client.jobs.PlanJob(job_pb2.PlanJobRequest(spec=asked.spec))):
        with pytest.raises(aio.AioRpcError) as refused:
            await call
        found.append((refused.value.code(), refused.value.details() or ""))
    assert found[0] == found[1]
    return found[0]


@pytest.mark.requirement("S2.31")
def test_jobs_get_the_limits_of_their_owners_roles(tmp_path: Path) -> None:
    """Defaults and maxima reach the executor and are shown to the client; a plan has the same ones."""

    async def scenario() -> None:
        async with running_node(tmp_path, job_limits=POLICY) as node:
            user, writer = node.client("ann", "user"), node.client("bob", "writer")
            shown = (await user.jobs.RunJob(request())).job.spec.limits
            got = jobs.Limits(cpu_percent=20, memory_bytes=100 * MIB, io_weight=500, open_files=4096, cpu_cores="0-1")
            asked = node.executor.requests[-1]
            assert isinstance(asked, jobs.RunJob)
            assert asked.spec.limits == got
            assert (shown.cpu_percent, shown.open_files, shown.cpu_cores) == (20, 4096, "0-1")
            await user.jobs.PlanJob(job_pb2.PlanJobRequest(spec=request().spec))
            planned = node.executor.requests[-1]
            assert isinstance(planned, jobs.PlanJob)
            assert planned.spec.limits == got
            kept = (await writer.jobs.RunJob(request(memory_bytes=400 * MIB, cpu_percent=800))).job.spec.limits
            assert (kept.memory_bytes, kept.cpu_percent) == (400 * MIB, 800)

    asyncio.run(scenario())


@pytest.mark.requirement("S2.31")
def test_more_than_the_maximum_is_refused_and_audited(tmp_path: Path) -> None:
    """PERMISSION_DENIED with limit, maximum and role; nothing is started; the audit log has it."""

    async def scenario() -> None:
        async with running_node(tmp_path, job_limits=POLICY) as node:
            user = node.client("ann", "user", "reader")
            code, text = await refusal(user, request(memory_bytes=201 * MIB))
            assert code is grpc.StatusCode.PERMISSION_DENIED
            assert text == f"limits.memory_bytes: {201 * MIB} exceeds {200 * MIB}, the maximum for user"
            assert (await refusal(user, request(cpu_cores="1-2")))[0] is grpc.StatusCode.PERMISSION_DENIED
            assert (await refusal(user, request(cpu_percent=0)))[0] is grpc.StatusCode.INVALID_ARGUMENT
            assert node.executor.requests == []
            last = json.loads((node.layout.audit / "audit.jsonl").read_text().splitlines()[0])
            assert (last["outcome"], last["who"], last["why"]) == ("denied", "ann", text)

    asyncio.run(scenario())


def test_networks(tmp_path: Path) -> None:
    """Who names no mode has the node's; host is for admins; the other modes are passed to the executor."""

    async def scenario() -> None:
        async with running_node(tmp_path, job_defaults=Jobs(network="bridge")) as node:
            writer, admin = node.client("bob", "writer"), node.client("root", "admin")
            host = job_pb2.RunJobRequest(spec=job_pb2.JobSpec(command="true", network=job_pb2.HOST))
            code, text = await refusal(writer, host)
            assert (code, node.executor.requests) == (grpc.StatusCode.PERMISSION_DENIED, [])
            assert "admin" in text
            assert (await admin.jobs.RunJob(host)).job.spec.network == job_pb2.HOST
            assert (await writer.jobs.RunJob(request())).job.spec.network == job_pb2.BRIDGE
            for mode in (job_pb2.NONE, job_pb2.ISOLATED):
                named = job_pb2.RunJobRequest(spec=job_pb2.JobSpec(command="true", network=mode))
                assert (await writer.jobs.RunJob(named)).job.spec.network == mode

    asyncio.run(scenario())


async def rnx(node: Node, directory: Path, *arguments: str) -> tuple[int, str]:
    """Exit code and stderr of rnx as a user of this node."""
    identity = node.authority.client("ann", "user")
    context = {"address": f"127.0.0.1:{node.api.port}", "ca": node.authority.pem.decode()}
    context |= {"cert": identity.cert.decode(), "key": identity.key.decode()}
    config = directory / "rnx-config.yml"
    config.touch(mode=0o600)
    config.write_text(yaml.safe_dump({"version": "3.0", "nodes": {"default": context}}))
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, "-m", "cli.rnx", "--config", str(config), *arguments),
        cwd=REPOSITORY,
        env=os.environ | {"GRPC_VERBOSITY": "NONE"},
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.PIPE,
    )
    _, err = await asyncio.wait_for(process.communicate(), 30 * SLOWNESS)
    assert process.returncode is not None
    return process.returncode, err.decode()


def test_rnx_exits_with_4_and_says_what_to_do(tmp_path: Path) -> None:
    """One line: limit, maximum, role, and what may be asked for; --dry-run answers the same."""

    async def scenario() -> None:
        async with running_node(tmp_path / "node", job_limits=POLICY) as node:
            for arguments in (
                ("job", "run", "-d", "--max-memory", "201MB", "--", "true"),
                ("job", "run", "--dry-run", "--max-memory", "201MB", "--", "true"),
                ("job", "start", "--open-files", "4097", "--", "true"),
                ("job", "start", "--network", "host", "--", "true"),
            ):
                code, err = await rnx(node, tmp_path, *arguments)
                assert (code, err.count("\n")) == (4, 1), err
                assert err.startswith("rnx: limits." if "host" not in arguments else "rnx: network:")
                assert "or less" in err or "role admin" in err

    asyncio.run(scenario())
