"""A job's output as text, for clients whose messages have no room for bytes. Pure.

Belongs here: decoding, and what stands where entries are missing. Does not belong here: following (`followers/`).

- Each stream of the job has a decoder of its own that keeps the beginning of a character until the rest of it comes, in
  whatever entry or message. What is not UTF-8 becomes U+FFFD.
- What is missing is one line of its own: `[joblet: entries 5 to 9 are missing: journal_full]`. A job can print such a
  line itself; who must know reads bytes, with JobService.StreamLogs.
"""

import codecs
from collections.abc import Iterable, Iterator
from typing import Final

from proto.joblet.v1 import job_pb2, persist_pb2

PIECE_CHARACTERS: Final = 256 * 1024
"""At most in one message: 1 MiB of UTF-8, far below the 4 MiB that a gRPC client accepts by default."""


class Transcript:
    """Takes the chunks of both streams of one job in their order, and gives text."""

    def __init__(self) -> None:
        self._decoders = {
            stream: codecs.getincrementaldecoder("utf-8")("replace")
            for stream in (persist_pb2.STDOUT, persist_pb2.STDERR)
        }
        self._in_line = False

    def of(self, chunks: Iterable[job_pb2.LogChunk]) -> Iterator[str]:
        """The text of what came next, in pieces of a bounded size; none where there is nothing to tell yet."""
        return self._pieces("".join(self._text(chunk) for chunk in chunks))

    def end(self) -> Iterator[str]:
        """Nothing more will come: a character that was begun is told as U+FFFD."""
        return self._pieces(self._given_up())

    def _text(self, chunk: job_pb2.LogChunk) -> str:
        if chunk.HasField("gap"):
            return self._kept(self._missing(chunk))
        return self._kept(self._decoders[chunk.stream].decode(chunk.data))

    def _missing(self, chunk: job_pb2.LogChunk) -> str:
        """The line for a gap. Behind it nothing goes on that was begun before it."""
        begun = self._kept(self._given_up())
        last = chunk.first_sequence + chunk.lines - 1
        which = f"entry {last} is" if chunk.lines == 1 else f"entries {chunk.first_sequence} to {last} are"
        return f"{begun}{self._line_end()}[joblet: {which} missing: {chunk.gap.reason or 'unknown'}]\n"

    def _line_end(self) -> str:
        return "\n" if self._in_line else ""

    def _given_up(self) -> str:
        return "".join(decoder.decode(b"", final=True) for decoder in self._decoders.values())

    def _kept(self, text: str) -> str:
        if text:
            self._in_line = not text.endswith("\n")
        return text

    @staticmethod
    def _pieces(text: str) -> Iterator[str]:
        return (text[start : start + PIECE_CHARACTERS] for start in range(0, len(text), PIECE_CHARACTERS))
