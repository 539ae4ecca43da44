"""Asking persist over its socket: it answers a bounded number of queries, and nobody who does not read may hold one."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import aclosing, asynccontextmanager
from pathlib import Path

import grpc
import pytest
from grpc import aio

from common.errors import JobletError, Reason
from proto.joblet.v1 import persist_pb2, persist_pb2_grpc
from services.api.history import History
from tests.api_node import running_node
from tests.waiting import await_for

QUERY = persist_pb2.LogBatchQueryRequest(query=persist_pb2.LogQueryRequest(job_id="a"))


class Endless(persist_pb2_grpc.PersistServiceServicer):
    """Answers each query again and again; `open` queries are being answered."""

    def __init__(self) -> None:
        self.open = 0

    async def QueryLogBatches(  # noqa: N802  # a name of the generated class
        self, request: persist_pb2.LogBatchQueryRequest, context: object
    ) -> AsyncIterator[persist_pb2.LogBatches]:
        """One empty answer after the other."""
        del request, context
        self.open += 1
        try:
            while True:
                yield persist_pb2.LogBatches()
                await asyncio.sleep(0)
        finally:
            self.open -= 1


@asynccontextmanager
async def history_of_one_query(directory: Path) -> AsyncIterator[tuple[History, Endless]]:
    """A connection to a service that answers one query at once."""
    service = Endless()  # type: ignore[abstract]  # the other methods are not asked
    socket = directory / "persist.sock"
    server = aio.server(maximum_concurrent_rpcs=1)
    persist_pb2_grpc.add_PersistServiceServicer_to_server(service, server)
    server.add_insecure_port(f"unix:{socket}")
    await server.start()
    history = History(socket)
    try:
        yield history, service
    finally:
        await history.close()
        await server.stop(0)


@pytest.mark.threat("D18")
def test_no_client_holds_a_query_open(tmp_path: Path) -> None:
    """`wait` would hold one of persist's places for ever: refused before persist is asked; without it, lines come."""

    async def scenario() -> None:
        async with running_node(tmp_path) as node:
            client = node.client("ann", "user")
            job = node.executor.add("ann").id
            node.executor.write(job, b"1\n")
            query = persist_pb2.LogQueryRequest(job_id=job)
            with pytest.raises(aio.AioRpcError) as refused:
                await client.persist.QueryLogBatches(persist_pb2.LogBatchQueryRequest(query=query, wait=True)).read()
            assert refused.value.code() is grpc.StatusCode.INVALID_ARGUMENT
            assert node.persist.queries == 0
            answer = await client.persist.QueryLogBatches(persist_pb2.LogBatchQueryRequest(query=query)).read()
            assert [batch.data for batch in answer.batches] == [b"1\n"]

    asyncio.run(scenario())


@pytest.mark.threat("D17")
def test_a_busy_history_is_asked_again_later(tmp_path: Path) -> None:
    """One query too many is told as UNAVAILABLE, which followers bear, and not as the end of their stream."""

    async def scenario() -> None:
        async with (
            history_of_one_query(tmp_path) as (history, _),
            aclosing(history.raw("QueryLogBatches", QUERY)) as one,
        ):
            await anext(one)
            with pytest.raises(JobletError) as refused:
                async with aclosing(history.raw("QueryLogBatches", QUERY)) as another:
                    await anext(another)
            assert refused.value.reason is Reason.UNAVAILABLE
            assert refused.value.retryable
            await anext(one)

    asyncio.run(scenario())


@pytest.mark.threat("D17")
def test_a_client_that_does_not_read_gives_its_query_up(tmp_path: Path) -> None:
    """While its answer is not taken the query ends, so that another one can be answered; who reads on learns it."""

    async def scenario() -> None:
        async with (
            history_of_one_query(tmp_path) as (history, service),
            aclosing(history.raw("QueryLogBatches", QUERY, untaken_s=0.05)) as sleepy,
        ):
            await anext(sleepy)
            await await_for(lambda: service.open == 0, what="the query to end")
            async with aclosing(history.raw("QueryLogBatches", QUERY)) as another:
                await anext(another)
            with pytest.raises(JobletError) as late:
                await anext(sleepy)
            assert late.value.reason is Reason.UNAVAILABLE

    asyncio.run(scenario())
