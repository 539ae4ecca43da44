"""A job's output as one stream, however often the connection breaks: no entry is missing and none comes twice.

Here: resuming at the sequence after the last one delivered, dropping repeats, and words for what is missing. Not here:
writing and formatting (the programs). See StreamLogs in proto/joblet/v1/job.proto.

A broken stream is asked for again as it was until it has begun: until an entry came, or a chunk without entries, by
which the node says where a tail goes on that has none. From then on offset and tail are done with and the limit has
less left. Gaps begin nothing among selected entries: they are told before what an offset or a tail begins with.
"""

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, nullcontext
from typing import Final

from cli.client.gaps import gap_text
from cli.client.patience import RESUME_WINDOW_S, Patience
from cli.client.session import Session
from common.errors import JobletError, Reason
from proto.joblet.v1 import job_pb2, persist_pb2

STREAM_WORDS: Final = {persist_pb2.STDOUT: "stdout", persist_pb2.STDERR: "stderr"}
GO_ON: Final = "rnx job log {job} --from-seq {sequence}"
"""The command that goes on behind what was delivered."""


class LogStream:
    """The chunks that `request` asks for, handed to a consumer by `follow`, once.

    `next_sequence` is where to go on: behind everything that the consumer is done with. `ended` is the
    ended job once a followed stream is over. `guard` is entered around the consumer's work on a chunk together with the
    counting of it, for a caller who must not be interrupted between the two. `go_on`: the command to advise; see GO_ON.
    """

    def __init__(
        self,
        session: Session,
        request: job_pb2.StreamLogsRequest,
        *,
        guard: AbstractContextManager[object] | None = None,
        patience: Patience | None = None,
        go_on: str = GO_ON,
    ) -> None:
        self._session = session
        self._request = request
        self._go_on = go_on
        self._patience = patience or Patience(RESUME_WINDOW_S)
        self._guard = guard or nullcontext()
        self._entries = 0
        self._begun = False
        self._counts_gaps = _is_plain(request)
        self.next_sequence = max(request.from_sequence, 1)
        self.ended: job_pb2.Job | None = None

    def follow(self, consume: Callable[[job_pb2.LogChunk], None]) -> None:
        """Give every chunk to `consume`, in order, until the end. Raises JobletError when it cannot go on."""
        while not self._complete():
            try:
                self._one_call(consume)
                if self._ends_here():
                    return
                raise JobletError(
                    Reason.UNAVAILABLE,
                    "the node ended the stream before the job did",
                    detail="ask again",
                    retryable=True,
                )
            except JobletError as error:
                self._bear(error)

    def _one_call(self, consume: Callable[[job_pb2.LogChunk], None]) -> None:
        session = self._session
        with session.translated():
            call = session.jobs.StreamLogs(self._continuation(), timeout=session.remaining_s())
            try:
                for response in call:
                    self._patience.progress()
                    for chunk in response.chunks:
                        self._deliver(chunk, consume)
                    if response.HasField("ended"):
                        self.ended = response.ended
            finally:
                session.cancel(call)

    def _deliver(self, chunk: job_pb2.LogChunk, consume: Callable[[job_pb2.LogChunk], None]) -> None:
        if not chunk.lines:  # nothing but where it goes on
            self.next_sequence = max(self.next_sequence, chunk.first_sequence)
            self._begun = True
            return
        fresh = after(chunk, self.next_sequence)
        if fresh is None:
            return
        counts = self._counts_gaps or not chunk.HasField("gap")
        with self._guard:
            consume(fresh)
            # Only now is it done with: what an error cut off must not count as delivered.
            self._begun = self._begun or counts
            self._entries += fresh.lines if counts else 0
            self.next_sequence = fresh.first_sequence + fresh.lines

    def _continuation(self) -> job_pb2.StreamLogsRequest:
        """The first request, or what is left of it."""
        if not self._begun:
            return self._request
        request = job_pb2.StreamLogsRequest()
        request.CopyFrom(self._request)
        request.ClearField("tail")
        request.ClearField("offset")
        request.from_sequence = self.next_sequence
        if request.limit:
            request.limit -= self._entries
        return request

    def _complete(self) -> bool:
        return self.ended is not None or bool(self._request.limit and self._entries >= self._request.limit)

    def _ends_here(self) -> bool:
        return self._complete() or not self._request.follow or self._request.end_time != 0

    def _bear(self, error: JobletError) -> None:
        try:
            self._patience.bear(error)
        except JobletError:
            if not self._begun and error.reason not in (Reason.UNAVAILABLE, Reason.DEADLINE):
                raise
            command = self._go_on.format(job=self._request.job_id, sequence=self.next_sequence)
            advice = f"go on with `{command}`"
            raise JobletError(
                error.reason,
                f"gave up following job {self._request.job_id}: {error.message}",
                detail=f"{error.detail}; {advice}" if error.detail else advice,
            ) from error


def _is_plain(request: job_pb2.StreamLogsRequest) -> bool:
    """Nothing is selected but sequences: then the entries of a gap count as entries, for the node as here."""
    return not (request.HasField("stream") or request.start_time or request.end_time or request.filter or request.regex)


def after(chunk: job_pb2.LogChunk, sequence: int) -> job_pb2.LogChunk | None:
    """The entries of `chunk` from `sequence` on; None when it has none."""
    repeated = sequence - chunk.first_sequence
    if repeated <= 0:
        return chunk
    if repeated >= chunk.lines:
        return None
    fresh = job_pb2.LogChunk()
    fresh.CopyFrom(chunk)
    fresh.first_sequence = sequence
    fresh.lines = chunk.lines - repeated
    if chunk.HasField("gap"):
        fresh.gap.bytes = 0  # told with its beginning
    else:
        fresh.data = chunk.data.split(b"\n", repeated)[repeated]
    return fresh


def entries(chunk: job_pb2.LogChunk) -> Iterator[tuple[int, bytes, bool]]:
    """Each entry of `chunk`: sequence, bytes without the line end, and whether it is partial (has no line end)."""
    lines = chunk.data.split(b"\n")
    if lines[-1] == b"" and not chunk.partial:
        lines.pop()
    last = len(lines) - 1
    for index, line in enumerate(lines):
        yield chunk.first_sequence + index, line, chunk.partial and index == last


def missing_text(chunk: job_pb2.LogChunk) -> str:
    """What a gap means, in a line."""
    what = gap_text(
        chunk.first_sequence,
        chunk.lines,
        chunk.gap.reason,
        size_bytes=chunk.gap.bytes,
        stream=STREAM_WORDS.get(chunk.stream, ""),
    )
    return f"output is missing: {what}"
