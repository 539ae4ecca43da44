"""The gate that every call passes: TLS version, identity, permission, capacity, audit; and errors on the way back.

It is an interceptor that wraps each handler, because an interceptor by itself sees neither the peer nor the
certificate. Requests reach the wrapper as bytes: nothing of a body is parsed before its caller is authorized. What a
handler gives back may be bytes already (one encoding shared by many followers), and is then passed on as it is.

Not here: whether a caller may touch one particular job (`access.py`).
"""

import asyncio
import hashlib
import inspect
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Iterable, Mapping
from contextlib import aclosing
from typing import Any, Final, NamedTuple

import grpc
import structlog
from google.protobuf.message import DecodeError
from grpc import aio

from common.errors import JobletError, Reason, invalid, unavailable
from services.api import audit, calls
from services.api.calls import Call, Context
from services.api.capacity import Capacity
from services.api.identity import DEFAULT_SCHEMES, Schemes, principal_of
from services.api.permissions import RULES, Scope, roles_with, scope_of
from services.api.rates import Rates
from services.api.revocation import Trust
from services.api.status import reason_of, status_of
from services.api.unbroken import to_its_end

log = structlog.get_logger(__name__)

TLS_VERSION: Final = b"TLSv1.3"
HANDLERS: Final[dict[tuple[bool, bool], Callable[..., Any]]] = {
    (False, False): grpc.unary_unary_rpc_method_handler,
    (False, True): grpc.unary_stream_rpc_method_handler,
    (True, False): grpc.stream_unary_rpc_method_handler,
    (True, True): grpc.stream_stream_rpc_method_handler,
}


class _Running(NamedTuple):
    """Whose a running call is: the chain of certificates that its connection was opened with, and the call."""

    presented: bytes
    call: Call


class Gate(aio.ServerInterceptor):  # type: ignore[type-arg]  # generic in the stubs only
    """Admits calls. `clock` gives Unix seconds. After `shut` nothing new is admitted."""

    def __init__(
        self,
        *,
        audit_log: audit.Audit,
        capacity: Capacity,
        rates: Rates,
        schemes: Schemes = DEFAULT_SCHEMES,
        clock: Callable[[], float] = time.time,
    ) -> None:
        self._audit = audit_log
        self._capacity = capacity
        self._rates = rates
        self._schemes = schemes
        self._clock = clock
        self._wrapped: dict[str, Any] = {}
        self._trust = Trust()
        self._running: dict[asyncio.Task[Any], _Running | None] = {}
        self._cut: dict[asyncio.Task[Any], JobletError] = {}
        self._shut = False

    async def intercept_service(
        self, continuation: Callable[[Any], Awaitable[Any]], handler_call_details: grpc.HandlerCallDetails
    ) -> Any:  # grpc's handlers have no public type
        """The guarded handler of a method; None (UNIMPLEMENTED) when nobody registered one."""
        handler = await continuation(handler_call_details)
        if handler is None:
            return None
        method = handler_call_details.method
        if method not in self._wrapped:
            self._wrapped[method] = self._wrap(method, handler)
        return self._wrapped[method]

    @property
    def running(self) -> int:
        """How many calls have begun and are not over."""
        return len(self._running)

    async def shut(self) -> None:
        """End every call with UNAVAILABLE, so that its client tries again, and admit no more."""
        self._shut = True
        for task in self._running:
            task.cancel()
        if self._running:
            await asyncio.wait(self._running, timeout=5.0)

    def trust_from_now_on(self, trust: Trust) -> int:
        """Admit by `trust`, and end every running call that it refuses with that status; how many those were.

        Nobody else's calls notice. What gRPC has already taken for a client that does not read is not called back.
        """
        self._trust = trust
        before = len(self._cut)
        for task, running in self._running.items():
            error = trust.refusal(running.presented) if running is not None else None
            if running is not None and error is not None and task not in self._cut:
                call = running.call
                log.warning("running call cut", who=call.principal.name, method=call.method, why=error.message)
                self._cut[task] = error
                task.cancel()
        return len(self._cut) - before

    def _wrap(self, method: str, handler: Any) -> Any:  # as above
        streams_in, streams_out = handler.request_streaming, handler.response_streaming
        behaviour = getattr(handler, f"{'stream' if streams_in else 'unary'}_{'stream' if streams_out else 'unary'}")
        parse, serialize = handler.request_deserializer, handler.response_serializer

        async def guarded(raw: Any, context: Context) -> Any:  # bytes or an iterator of bytes
            async def run() -> Any:  # whatever the behaviour answers
                request = _parsed_each(parse, raw) if streams_in else _parsed(parse, raw)
                calls.current().asks(request)
                answer = behaviour(request, context)
                if inspect.isawaitable(answer):
                    answer = await answer
                if not inspect.isasyncgen(answer):
                    return answer
                calls.current().allowed()
                async with aclosing(answer) as responses:
                    begun = False
                    async for response in responses:
                        if not begun:
                            await _begin(context)
                            begun = True
                        await context.write(response)
                return None

            return await self._guard(method, context, run)

        return HANDLERS[streams_in, streams_out](
            guarded,
            request_deserializer=None,
            response_serializer=lambda answer: answer if isinstance(answer, bytes) else serialize(answer),
        )

    async def _guard(self, method: str, context: Context, run: Callable[[], Awaitable[Any]]) -> Any:
        task = asyncio.current_task()
        assert task is not None
        self._running[task] = None
        call: Call | None = None
        try:
            properties = context.auth_context()
            call = self._admit(method, context, properties)
            self._running[task] = _Running(_presented(properties), call)
            calls.enter(call)
            with self._capacity.of(call.rule, call.principal):
                answer = await run()
            call.ended()
            return answer
        except JobletError as error:
            self._refused(call, error)
            return await _abort(context, error)
        except asyncio.CancelledError:
            cut = self._cut.get(task)
            if cut is not None:
                self._refused(call, cut)
                return await _abort(context, cut)
            if not self._shut:
                raise
            return await _abort(context, unavailable("the api service is stopping", "try again"))
        except aio.AbortError:
            if call is not None:
                call.ended(reason_of(context.code()), context.details())
            raise
        except Exception:  # the boundary of a task: whatever our own mistake is, the client learns two words
            log.exception("call failed", method=method)
            if call is not None:
                call.ended(Reason.INTERNAL, "internal error")
            return await _abort(context, JobletError(Reason.INTERNAL, "internal error"))
        finally:
            self._running.pop(task)
            self._cut.pop(task, None)
            if call is not None:
                call.ended(
                    audit.UNFINISHED, "the service stopped" if self._shut else "the caller left, or its time was over"
                )

    def _refused(self, call: Call | None, error: JobletError) -> None:
        if error.reason is Reason.INTERNAL:
            log.error("call failed", error=str(error))
        if call is not None:
            call.ended(error.reason, error.message)

    def _admit(self, method: str, context: Context, properties: Mapping[str, Iterable[bytes]]) -> Call:
        """Who calls, and whether his roles let him use the method at all."""
        if self._shut:
            raise unavailable("the api service is stopping", "try again")
        pem = b"".join(properties.get("x509_pem_cert", ()))
        serial = ""
        try:
            if list(properties.get("ssl_tls_version", ())) != [TLS_VERSION]:
                raise JobletError(Reason.UNAUTHENTICATED, "this connection is not TLS 1.3", detail="use TLS 1.3")
            if not pem:
                raise JobletError(Reason.UNAUTHENTICATED, "no client certificate", detail="use mutual TLS")
            serial = f"sha256:{hashlib.sha256(pem).hexdigest()}"
            principal = principal_of(pem, self._schemes, now_s=self._clock())
        except JobletError as error:
            self._turned_away(method, context.peer(), serial, error)
            raise
        rule = RULES.get(method)
        if rule is None:
            denied = JobletError(Reason.DENIED, f"{method} is open to nobody", detail="it has no permission row")
            self._turned_away(method, context.peer(), serial, denied)
            raise denied
        call = Call(principal=principal, method=method, rule=rule, peer=context.peer(), audit_log=self._audit)
        refusal = self._trust.refusal(_presented(properties))
        if refusal is not None:
            log.warning("caller refused", method=method, peer=call.peer, who=principal.name, why=refusal.message)
            call.ended(refusal.reason, refusal.message)
            raise refusal
        self._rates.admit(call)
        if scope_of(principal.roles, rule.permission) is Scope.NONE:
            denied = JobletError(
                Reason.DENIED,
                f"{principal.name} may not {rule.permission}",
                detail=f"this needs a certificate with the role {' or '.join(roles_with(rule.permission))}",
            )
            call.ended(denied.reason, denied.message)
            raise denied
        return call

    def _turned_away(self, method: str, peer: str, serial: str, error: JobletError) -> None:
        log.warning("caller refused", method=method, peer=peer, certificate=serial, why=error.message)
        self._audit.record(
            audit.Decision(
                time=audit.now(),
                who="",
                serial=serial,
                roles=(),
                scheme="",
                method=method,
                object="",
                peer=peer,
                outcome=error.reason,
                why=error.message[: audit.WHY_CHARACTERS_MAX],
            )
        )


def _presented(properties: Mapping[str, Iterable[bytes]]) -> bytes:
    """A client's certificate and those that it sent along, PEM (grpc/grpc_security_constants.h)."""
    return b"".join((*properties.get("x509_pem_cert", ()), *properties.get("x509_pem_cert_chain", ())))


def _parsed(parse: Callable[[bytes], Any], raw: bytes) -> Any:  # a request of any method
    try:
        return parse(raw)
    except DecodeError as cause:
        raise invalid("the request is not a message of this method", "see proto/joblet/v1") from cause


async def _parsed_each(parse: Callable[[bytes], Any], raw: AsyncIterator[bytes]) -> AsyncIterator[Any]:
    async for one in raw:
        yield _parsed(parse, one)


async def _begin(context: Context) -> None:
    """Send the initial metadata, by itself and to the end, also when the call is cut meanwhile.

    gRPC notes that it has sent them only when the whole batch has gone out, which is that of the first message
    otherwise. Who is cut before would be sent them again with his status: that fails, and his call never ends.
    """
    await to_its_end(context.send_initial_metadata(()))


async def _abort(context: Context, error: JobletError) -> None:
    status = status_of(error)
    await context.abort(status.code, status.details, status.trailing_metadata)
