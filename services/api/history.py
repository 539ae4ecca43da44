"""The history service (persist), asked over its unix socket. Not here: who may ask, and what followers lack.

Messages pass as bytes where nobody here looks into them: a query of millions of lines is handed on, not re-encoded.

persist answers a bounded number of queries at once (`persist.server.max_connections`), so none may be held by a client
that does not read: hundreds of those would keep everybody else from the store.
"""

import asyncio
from collections.abc import AsyncGenerator
from pathlib import Path
from typing import Any, Final

import grpc
from google.protobuf.message import Message
from grpc import aio

from common.errors import JobletError, Reason, unavailable
from proto.joblet.v1 import persist_pb2
from services.api.status import reason_of

SERVICE: Final = "/joblet.v1.PersistService/"
MESSAGE_BYTES_MAX: Final = 16 * 2**20
CALL_TIMEOUT_S: Final = 30.0
UNTAKEN_S: Final = 2.0
"""A follower whose client takes nothing for so long gives its query up, and asks again when it reads on."""
UNTAKEN_S_MAX: Final = 60.0
"""The same for a client's own query, which ends with that."""
BUSY: Final = "Concurrent RPC limit exceeded"
"""What gRPC says for a service that has as many calls as it may (grpc/aio, server.pyx.pxi)."""

OPTIONS: Final = (
    ("grpc.enable_http_proxy", 0),
    ("grpc.max_receive_message_length", MESSAGE_BYTES_MAX),
    # persist may be restarted at any time, and followers wait for it: never back off for longer than a second.
    ("grpc.initial_reconnect_backoff_ms", 100),
    ("grpc.min_reconnect_backoff_ms", 1000),
    ("grpc.max_reconnect_backoff_ms", 1000),
)


class History:
    """A connection to persist. Errors come as JobletError, UNAVAILABLE while it is away."""

    def __init__(self, socket: Path) -> None:
        self._channel = aio.insecure_channel(f"unix:{socket}", options=OPTIONS)
        self._delete: Any = self._channel.unary_unary(
            SERVICE + "DeleteJobData",
            persist_pb2.DeleteJobDataRequest.SerializeToString,
            persist_pb2.DeleteJobDataResponse.FromString,
        )
        self._streams: dict[str, Any] = {
            method: self._channel.unary_stream(SERVICE + method, lambda message: message.SerializeToString(), None)
            for method in ("QueryLogs", "QueryLogBatches", "QueryMetrics", "ApplyRetention", "QueryAudit")
        }
        self._store: Any = self._channel.unary_unary(
            SERVICE + "GetStore", persist_pb2.GetStoreRequest.SerializeToString, persist_pb2.StoreInfo.FromString
        )

    async def raw(self, method: str, request: Message, *, untaken_s: float = UNTAKEN_S) -> AsyncGenerator[bytes, None]:
        """The answers of a query as they came. Leaving early ends the query.

        UNAVAILABLE when an answer is not taken for `untaken_s`: then the query is given up while the caller is away.
        """
        call = self._streams[method](request)
        loop = asyncio.get_running_loop()
        try:
            while (message := await call.read()) is not aio.EOF:  # type: ignore[attr-defined]  # missing in the stubs
                giving_up = loop.call_later(untaken_s, call.cancel)
                yield message
                giving_up.cancel()
                if call.cancelled():
                    raise unavailable(f"an answer was not taken for {untaken_s:g} s", "ask again, and read faster")
        except aio.AioRpcError as error:
            raise _as_error(error) from error
        finally:
            call.cancel()  # the timer, if it still runs, does no more than this

    async def delete(self, job: str) -> persist_pb2.DeleteJobDataResponse:
        """Remove all that is stored of a job; nothing stored is no error."""
        try:
            answer: persist_pb2.DeleteJobDataResponse = await self._delete(
                persist_pb2.DeleteJobDataRequest(job_id=job), timeout=CALL_TIMEOUT_S
            )
        except aio.AioRpcError as error:
            raise _as_error(error) from error
        return answer

    async def store(self, *, timeout_s: float = CALL_TIMEOUT_S) -> persist_pb2.StoreInfo:
        """How much is stored, and what persist counted."""
        try:
            answer: persist_pb2.StoreInfo = await self._store(persist_pb2.GetStoreRequest(), timeout=timeout_s)
        except aio.AioRpcError as error:
            raise _as_error(error) from error
        return answer

    async def close(self) -> None:
        """Give the connection up."""
        await self._channel.close(None)


def _as_error(error: aio.AioRpcError) -> JobletError:
    code = error.code()
    if code is grpc.StatusCode.RESOURCE_EXHAUSTED and BUSY in (error.details() or ""):
        return unavailable("the history service has as many queries as it may", "try again")
    if code in {grpc.StatusCode.UNAVAILABLE, grpc.StatusCode.CANCELLED}:
        return unavailable("the history service does not answer", "try again")
    reason = reason_of(code)
    if reason is Reason.UNAUTHENTICATED:  # between two services of ours, so the caller has nothing to do with it
        reason = Reason.INTERNAL
    return JobletError(reason, error.details() or code.name, retryable=reason is Reason.EXHAUSTED)
