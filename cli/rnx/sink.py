"""Where a job's output goes: byte for byte, made safe for a terminal, with times, or as JSON lines.

Here: one class for each way of showing log chunks. Not here: where chunks come from (`cli/client/logs.py`), and
writing to descriptors (`cli/front/output.py`).
"""

import base64
import json
from collections.abc import Mapping
from typing import Protocol

from cli.client.escape import TerminalText
from cli.client.logs import STREAM_WORDS, entries, missing_text
from cli.front.output import STDERR, STDOUT, tell, write_all
from common.quantities import format_time_ns
from proto.joblet.v1 import job_pb2, persist_pb2


class Sink(Protocol):
    """Takes the chunks of one job in order."""

    def write(self, chunk: job_pb2.LogChunk) -> None:
        """Show it; returns when it is written. Raises BrokenPipeError when nobody reads."""

    def finish(self) -> None:
        """Nothing more will come."""


def tell_gap(chunk: job_pb2.LogChunk) -> None:
    """A line on stderr for entries that are missing."""
    tell(f"rnx: {missing_text(chunk)}")


class RawSink:
    """The bytes of the job and nothing else, each stream to the descriptor that `descriptors` has for it."""

    def __init__(self, descriptors: Mapping[int, int]) -> None:
        self._descriptors = descriptors

    def write(self, chunk: job_pb2.LogChunk) -> None:
        """The chunk's bytes."""
        if chunk.HasField("gap"):
            tell_gap(chunk)
        else:
            write_all(self._descriptors[chunk.stream], chunk.data)

    def finish(self) -> None:
        """Nothing is held back."""


def attached_sink() -> RawSink:
    """Stdout to stdout, stderr to stderr."""
    return RawSink({persist_pb2.STDOUT: STDOUT, persist_pb2.STDERR: STDERR})


def stored_sink() -> RawSink:
    """Both streams to stdout, in the order in which they were written."""
    return RawSink({persist_pb2.STDOUT: STDOUT, persist_pb2.STDERR: STDOUT})


class TextSink:
    """Lines for a person: safe for a terminal when `escaped`, each behind its time when `timestamps`."""

    def __init__(self, *, escaped: bool, timestamps: bool) -> None:
        self._timestamps = timestamps
        self._texts = {stream: TerminalText() for stream in STREAM_WORDS} if escaped else None
        self._open_line: int | None = None  # the stream whose unfinished line the cursor stands in

    def write(self, chunk: job_pb2.LogChunk) -> None:
        """The chunk's entries."""
        if chunk.HasField("gap"):
            tell_gap(chunk)
            return
        out = bytearray()
        if self._timestamps:
            prefix = f"{format_time_ns(chunk.timestamp)} ".encode()
            for _, content, partial in entries(chunk):
                if self._open_line != chunk.stream:
                    out += b"\n" if self._open_line is not None else b""
                    out += prefix
                out += self._safe(chunk.stream, content if partial else content + b"\n")
                self._open_line = chunk.stream if partial else None
        else:
            out += self._safe(chunk.stream, chunk.data)
        write_all(STDOUT, bytes(out))

    def finish(self) -> None:
        """The beginning of a character that never came to its end."""
        if self._texts is not None:
            write_all(STDOUT, b"".join(text.feed(b"", final=True) for text in self._texts.values()))

    def _safe(self, stream: persist_pb2.StreamType, data: bytes) -> bytes:
        return data if self._texts is None else self._texts[stream].feed(data)


class JsonSink:
    """One object an entry: sequence, timestamp (Unix nanoseconds), stream, content, and partial where it is true.

    `content_b64` instead of `content` where the bytes are not UTF-8. The same as persist stores.
    """

    def write(self, chunk: job_pb2.LogChunk) -> None:
        """The chunk's entries, one line each."""
        if chunk.HasField("gap"):
            tell_gap(chunk)
            return
        tail = f',"timestamp":{chunk.timestamp},"stream":"{STREAM_WORDS[chunk.stream]}",'
        lines = [
            f'{{"sequence":{sequence}{tail}{_content(content)}{_partial(partial)}}}\n'
            for sequence, content, partial in entries(chunk)
        ]
        write_all(STDOUT, "".join(lines).encode("ascii"))

    def finish(self) -> None:
        """Nothing is held back."""


def _partial(partial: bool) -> str:  # noqa: FBT001  # a leaf with one argument
    return ',"partial":true' if partial else ""


def _content(content: bytes) -> str:
    try:
        return f'"content":{json.dumps(content.decode("utf-8"))}'
    except UnicodeDecodeError:
        return f'"content_b64":"{base64.b64encode(content).decode("ascii")}"'
