"""Chunks of JSON lines to gzip members, several at once where that is worth it. No I/O.

Encoding holds the interpreter's lock and compressing does not, and each takes about as long: so members are compressed
in other threads while the caller's goes on encoding. A small write is one member, and nobody is asked to help. What a
member is: member.py.
"""

from collections.abc import Iterable, Sequence
from concurrent.futures import Executor, Future

from services.persist import member
from services.persist.lines import Chunk
from services.persist.member import Span


def members(
    chunks: Iterable[Chunk], *, text_bytes: int, level: int, compressors: Executor | None = None
) -> list[bytes]:
    """`chunks` as members of at least `text_bytes` of text each, but for the last; in their order."""
    built: list[bytes | Future[bytes]] = []
    waiting: list[Chunk] = []
    size = 0
    for chunk in chunks:
        waiting.append(chunk)
        size += len(chunk.text)
        if size >= text_bytes:
            if compressors is None:
                built.append(_build(waiting, level))
            else:
                built.append(compressors.submit(_build, waiting, level))
            waiting, size = [], 0
    if waiting:
        built.append(_build(waiting, level))
    return [done if isinstance(done, bytes) else done.result() for done in built]


def _build(chunks: Sequence[Chunk], level: int) -> bytes:
    text = b"".join([chunk.text for chunk in chunks])
    return member.build(text, _joined([chunk.span for chunk in chunks]), level=level)


def _joined(spans: Sequence[Span]) -> Span:
    return Span(
        sum(span.lines for span in spans),
        spans[0].first_sequence,
        spans[-1].last_sequence,
        min(span.first_time_ns for span in spans),
        max(span.last_time_ns for span in spans),
    )
