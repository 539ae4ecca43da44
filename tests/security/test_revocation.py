"""Revoked clients, and clients of authorities that have left: cut and refused, and nobody else notices.

The real server in this process, with a fake executor: what a look of the keeper changes. That looks come at all, with
files, a keeper and a whole node, is in test_rotation.py.
"""

import asyncio
import json
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import Any

import grpc
import pytest
from grpc import aio

from common.config.settings import Security
from common.errors import JobletError, Reason
from proto.joblet.v1 import job_pb2, node_pb2
from services.api.job_service import JobService
from services.api.looks import Look, Reading
from services.api.revocation import Trust
from services.api.rotation import Rotation
from tests.api_node import Client, Node, running_node
from tests.certificates import Authority, Identity
from tests.waiting import SLOWNESS, await_for

REVOKED = "client certificate refused: it was revoked"
LEFT = "client certificate refused: its authority is not trusted any more"


def look(*, ca: bytes | None = None, crl: bytes | None = None) -> Look:
    """These files changed; the pair stands in the configuration."""
    return Look(None, None, *(None if each is None else Reading(each, 0o600) for each in (ca, crl)))


async def revoke(node: Node, *identities: Identity) -> None:
    """A list with these certificates is seen by the keeper."""
    await rotation(node).take(look(crl=node.authority.crl(*identities)))


def rotation(node: Node) -> Rotation:
    """That of the api."""
    return node.api.rotation


async def ended(call: Any) -> tuple[grpc.StatusCode, str]:
    """Status and text of a call, read to its end."""
    try:
        if isinstance(call, aio.UnaryStreamCall):
            async for _ in call:
                pass
        else:
            await call
    except aio.AioRpcError as error:
        return error.code(), error.details() or ""
    return grpc.StatusCode.OK, ""


class Calls:
    """One running call of each kind, of one client."""

    def __init__(self, client: Client, job: str) -> None:
        self.release = asyncio.Event()
        self.running = {
            "StreamLogs": client.jobs.StreamLogs(job_pb2.StreamLogsRequest(job_id=job, follow=True)),
            "WatchJobs": client.jobs.WatchJobs(job_pb2.WatchJobsRequest()),
            "StreamMetrics": client.jobs.StreamMetrics(job_pb2.StreamMetricsRequest(job_id=job, follow=True)),
            "WaitJob": client.jobs.WaitJob(job_pb2.WaitJobRequest(job_id=job)),
            "UploadFiles": client.jobs.UploadFiles(self._upload()),
        }
        self.ends = {name: asyncio.create_task(ended(call)) for name, call in self.running.items()}

    async def _upload(self) -> AsyncIterator[job_pb2.UploadFilesRequest]:
        entry = job_pb2.UploadEntry(path="a", kind=job_pb2.UploadEntry.FILE, size_bytes=2, mode=0o600)
        yield job_pb2.UploadFilesRequest(entry=entry)
        await self.release.wait()

    def still_running(self) -> set[str]:
        """Which of them have not ended."""
        return {name for name, end in self.ends.items() if not end.done()}

    async def close(self) -> None:
        """End what runs."""
        for call in self.running.values():
            call.cancel()
        await asyncio.gather(*self.ends.values(), return_exceptions=True)


def audit_of(node: Node, who: str) -> list[dict[str, Any]]:
    """Lines of the audit log about calls of one user."""
    lines = (node.layout.audit / "audit.jsonl").read_text().splitlines()
    return [line for line in map(json.loads, lines) if line.get("who") == who]


@pytest.mark.threat("D32")
def test_every_running_call_of_a_revoked_client_is_cut_and_nobody_elses(tmp_path: Path) -> None:
    """Streams of logs, changes and metrics, a wait and an upload end with UNAUTHENTICATED, new calls too, audited."""

    async def scenario() -> None:
        async with running_node(tmp_path) as node:
            bad, good = node.authority.client("eve", "admin"), node.authority.client("ann", "admin")
            eve, ann = node.caller(bad), node.caller(good)
            job = node.executor.add("ann").id
            hers, theirs = Calls(eve, job), Calls(ann, job)
            kinds = set(hers.running)
            await await_for(lambda: node.api.gate.running == 2 * len(kinds), what="all calls to run")

            await revoke(node, bad)
            ends = {name: await asyncio.wait_for(end, 10) for name, end in hers.ends.items()}
            assert ends == dict.fromkeys(kinds, (grpc.StatusCode.UNAUTHENTICATED, REVOKED))
            assert await ended(eve.jobs.ListJobs(job_pb2.ListJobsRequest())) == ends["WaitJob"]
            again = node.caller(bad)
            assert await ended(again.node.GetInfo(node_pb2.GetInfoRequest())) == ends["WaitJob"]
            await await_for(lambda: node.api.gate.running == len(kinds), what="the cut calls to be over")
            assert theirs.still_running() == kinds

            node.executor.write(job, b"after\n")
            node.executor.finish(job)
            code, _ = await asyncio.wait_for(theirs.ends["WaitJob"], 10)
            assert code is grpc.StatusCode.OK
            code, _ = await asyncio.wait_for(theirs.ends["StreamLogs"], 10)
            assert code is grpc.StatusCode.OK
            await theirs.close()
            await hers.close()
            refused = [line for line in audit_of(node, "eve") if line["outcome"] == "unauthenticated"]
            assert {line["method"].rsplit("/")[-1] for line in refused} == {"ListJobs", "GetInfo", *kinds}
            assert {line["why"] for line in refused} == {REVOKED}
            assert not [line for line in audit_of(node, "ann") if line["outcome"] == "unauthenticated"]
            assert rotation(node).counters["revoked_calls_cut"] == len(kinds)

    asyncio.run(scenario())


@pytest.mark.threat("D32")
def test_who_is_cut_while_his_first_message_goes_out_is_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The call ends with the status then, too: gRPC has begun to send metadata and does not know that it has."""

    class Refusing(Trust):
        def refusal(self, presented: bytes) -> JobletError | None:  # noqa: ARG002
            return JobletError(Reason.UNAUTHENTICATED, REVOKED)

    async def scenario() -> None:
        cut: list[Callable[[], object]] = []

        async def watch(*_: object) -> AsyncIterator[job_pb2.WatchJobsResponse]:
            async def changes() -> AsyncIterator[job_pb2.WatchJobsResponse]:
                asyncio.get_running_loop().call_soon(cut[0])
                yield job_pb2.WatchJobsResponse()
                await asyncio.Event().wait()

            return changes()

        monkeypatch.setattr(JobService, "WatchJobs", watch)
        async with running_node(tmp_path) as node:
            cut.append(lambda: node.api.gate.trust_from_now_on(Refusing()))
            call = node.caller(node.authority.client("eve", "admin")).jobs.WatchJobs(job_pb2.WatchJobsRequest())
            end = asyncio.create_task(ended(call))
            await await_for(end.done, what="the end of the call")
            assert end.result() == (grpc.StatusCode.UNAUTHENTICATED, REVOKED)

    asyncio.run(scenario())


@pytest.mark.threat("D32")
@pytest.mark.threat("D17")
def test_a_revoked_client_that_does_not_read_holds_nothing(tmp_path: Path) -> None:
    """Its stream is stuck in gRPC's window, and is over all the same."""

    async def scenario() -> None:
        async with running_node(tmp_path) as node:
            bad = node.authority.client("eve", "admin")
            job = node.executor.add("ann").id
            for _ in range(64):
                node.executor.write(job, b"x" * 262_143 + b"\n")
            stuck = node.caller(bad).jobs.StreamLogs(job_pb2.StreamLogsRequest(job_id=job, follow=True))
            await await_for(lambda: node.api.capacity.streams == 1, what="the stream to be open")
            await stuck.read()
            await revoke(node, bad)
            await await_for(lambda: node.api.capacity.streams == 0, what="the stream to be over")
            await await_for(lambda: node.api.gate.running == 0, what="the call to be over")
            stuck.cancel()

    asyncio.run(scenario())


@pytest.mark.threat("D31")
@pytest.mark.threat("D02")
def test_clients_of_an_authority_that_left_are_cut_and_refused(tmp_path: Path) -> None:
    """On old connections by the gate, on new ones by TLS; clients of the authority that stays go on."""

    async def scenario() -> None:
        async with running_node(tmp_path) as node:
            other = Authority("the next authority")
            old = node.authority.client("ann", "admin")
            caller = node.caller(old)
            job = node.executor.add("ann").id
            stream = caller.jobs.StreamLogs(job_pb2.StreamLogsRequest(job_id=job, follow=True))
            end = asyncio.create_task(ended(stream))
            await await_for(lambda: node.api.capacity.streams == 1, what="the stream to be open")

            await rotation(node).take(look(ca=node.authority.pem + other.pem))
            new = node.caller(other.client("bob", "admin"))
            watch = asyncio.create_task(ended(new.jobs.WatchJobs(job_pb2.WatchJobsRequest())))
            await await_for(lambda: node.api.capacity.streams == 2, what="both streams to be open")
            assert not end.done()

            await rotation(node).take(look(ca=other.pem))
            refused = (grpc.StatusCode.UNAUTHENTICATED, LEFT)
            assert await asyncio.wait_for(end, 10) == refused
            assert await ended(caller.jobs.ListJobs(job_pb2.ListJobsRequest())) == refused
            code, _ = await ended(node.caller(old).jobs.ListJobs(job_pb2.ListJobsRequest(), timeout=10 * SLOWNESS))
            assert code is grpc.StatusCode.UNAVAILABLE
            assert (await ended(new.jobs.ListJobs(job_pb2.ListJobsRequest())))[0] is grpc.StatusCode.OK
            assert not watch.done()
            watch.cancel()

    asyncio.run(scenario())


@pytest.mark.threat("D32")
def test_a_list_that_is_gone_or_of_somebody_else_takes_nothing_back(tmp_path: Path) -> None:
    """Whoever was revoked stays so; the next good list decides anew."""

    async def scenario() -> None:
        async with running_node(tmp_path) as node:
            bad, good = node.authority.client("eve", "admin"), node.authority.client("ann", "admin")
            eve, ann = node.caller(bad), node.caller(good)
            ask = job_pb2.ListJobsRequest()
            await revoke(node, bad)
            for wrong in (
                look(crl=Authority("test authority").crl(good)),  # the name is right, the key is not
                look(crl=b""),
                look()._replace(crl=Reading(b"", error=2)),
                look(crl=node.authority.crl(good)[:-100]),
            ):
                await rotation(node).take(wrong)
                assert await ended(eve.jobs.ListJobs(ask)) == (grpc.StatusCode.UNAUTHENTICATED, REVOKED)
                assert (await ended(ann.jobs.ListJobs(ask)))[0] is grpc.StatusCode.OK
            assert rotation(node).counters["certificates_refused"] == 4
            await revoke(node)
            assert (await ended(eve.jobs.ListJobs(ask)))[0] is grpc.StatusCode.OK

    asyncio.run(scenario())


def test_who_sees_all_jobs_is_told_when_certificates_end(tmp_path: Path) -> None:
    """Server and CA, both soon: the test authority's last 30 days. Others are told nothing."""

    async def scenario() -> None:
        async with running_node(tmp_path, security=Security(expiry_warning_days=60)) as node:
            info = await node.client("ann", "admin").node.GetInfo(node_pb2.GetInfoRequest())
            assert [(one.name, one.soon) for one in info.certificates] == [("server", True), ("ca", True)]
            assert info.certificates[1].subject == "CN=test authority"
            assert info.certificates[0].not_after.seconds > 0
            info = await node.client("bob", "user").node.GetInfo(node_pb2.GetInfoRequest())
            assert not info.certificates

    asyncio.run(scenario())
