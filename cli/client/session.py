"""One conversation with a node: its stubs, the deadline of the whole command, and typed errors.

Here: how a call is made. Not here: which calls there are (`jobs.py`), what is retried (`patience.py`).
"""

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import TracebackType
from typing import Final, Protocol, Self, TypeVar

import grpc

from cli.client.channel import open_channel
from cli.client.contexts import Context
from cli.client.errors import translate
from cli.client.patience import ASK_WINDOW_S, Patience
from common.errors import JobletError, Reason
from proto.joblet.v1 import job_pb2_grpc, node_pb2_grpc, volume_pb2_grpc

Question_contra = TypeVar("Question_contra", contravariant=True)
Answer_co = TypeVar("Answer_co", covariant=True)
Answer = TypeVar("Answer")
Question = TypeVar("Question")

ANSWER_TIMEOUT_S: Final = 30.0
"""How long one answer may take when the user sets no --timeout."""
WORK_TIMEOUT_S: Final = 3600.0
"""The same of what may take long, such as copying a volume."""


class Unary(Protocol[Question_contra, Answer_co]):
    """A stub's method: one request, one answer."""

    def __call__(self, request: Question_contra, /, *, timeout: float | None = None) -> Answer_co:
        """Ask; raises grpc.RpcError."""


class Cancellable(Protocol):
    """A call in progress."""

    def cancel(self) -> object:
        """End it; a call that is over is left alone."""


class Session:
    """The stubs of one node behind one channel. A context manager: leaving it closes the channel.

    After KeyboardInterrupt it does not, and the process must end by `os._exit` (see `cli/front/program.py`).

    `timeout_s` bounds everything that is done with it together, counted from here; None: single answers are bounded by
    ANSWER_TIMEOUT_S, streams and waiting are not.
    """

    def __init__(
        self, context: Context, *, timeout_s: float | None = None, clock: Callable[[], float] = time.monotonic
    ) -> None:
        self.context = context
        self._clock = clock
        self._deadline = None if timeout_s is None else clock() + timeout_s
        self._channel = open_channel(context)
        self.jobs = job_pb2_grpc.JobServiceStub(self._channel)
        self.volumes = volume_pb2_grpc.VolumeServiceStub(self._channel)
        self.nodes = node_pb2_grpc.NodeServiceStub(self._channel)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        # An interrupt may have struck inside of gRPC, before the thread ran that ends its calls: close() would wait for
        # that for ever (grpcio 1.85.1, _channel_managed_call_management). The process is about to end in any case.
        if kind is not KeyboardInterrupt:
            self._channel.close()

    def ask(self, method: Unary[Question, Answer], request: Question, *, most_s: float = ANSWER_TIMEOUT_S) -> Answer:
        """One answer to what may be asked once only; without --timeout within `most_s`. Raises JobletError."""
        with self.translated():
            return method(request, timeout=self.answer_timeout_s(most_s))

    def ask_again(
        self, method: Unary[Question, Answer], request: Question, *, patience: Patience | None = None
    ) -> Answer:
        """One answer to what may be asked as often as the connection breaks: see `patience.py`. Raises JobletError."""
        patience = patience or Patience(ASK_WINDOW_S)
        broken: JobletError | None = None
        while True:
            try:
                return self.ask(method, request)
            except JobletError as error:
                if broken is not None and error.reason is Reason.DEADLINE:
                    raise broken from error  # that the user's time is over he knows; what took it he does not
                patience.bear(error)
                broken = error

    @contextmanager
    def translated(self) -> Iterator[None]:
        """Turns grpc.RpcError into JobletError."""
        try:
            yield
        except grpc.RpcError as error:
            raise translate(error, self.context) from error

    @staticmethod
    def cancel(call: Cancellable) -> None:
        """Let go of a call, so that the node stops working for it."""
        call.cancel()

    def answer_timeout_s(self, most_s: float = ANSWER_TIMEOUT_S) -> float:
        """Seconds that a single answer may take from now; `most_s` without --timeout."""
        remaining = self.remaining_s()
        return most_s if remaining is None else remaining

    def remaining_s(self) -> float | None:
        """Seconds until the deadline of the command; None: there is none. JobletError(DEADLINE) when it is over."""
        if self._deadline is None:
            return None
        remaining = self._deadline - self._clock()
        if remaining <= 0:
            raise JobletError(Reason.DEADLINE, "the time given with --timeout is over", detail="give it longer")
        return remaining
