r"""`joblet tap PATTERN`: what passes over the event topics, decoded, one line an entry.

Here: patterns and lines. Not here: the messages (common/messages) and their transport (common/bus). Everything that
a job or a client chose is escaped, on a terminal and in a pipe: a tap is for reading. `--json` keeps the bytes.
"""

import asyncio
import base64
import json
import os
import re
import signal
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Final, NamedTuple

import click
import msgspec

from cli.client.escape import escape_line
from cli.joblet.up import base_dir_option
from common import records
from common.bus.events import Subscriber
from common.bus.zeromq import ZeroMQ
from common.config.layout import layout_of
from common.config.load import load_settings
from common.errors import invalid, unavailable
from common.messages.envelope import Body
from common.messages.jobs import JobChanged
from common.messages.logs import LogMarker, LogRecords, StoreMetric
from common.messages.topics import EVENTS
from common.quantities import format_size, format_time_ns

_PATTERN = re.compile(r"\*|(?:log|metrics|job)\.(?:[0-9a-f-]{0,36}\*|[0-9a-f-]{36})", re.ASCII)
_WORDS: Final = {
    records.RecordType.START: "start",
    records.RecordType.OUTPUT: "output",
    records.RecordType.EXIT: "exit",
    records.RecordType.GAP: "gap",
}
_OFTEN_ZERO: Final = re.compile(r"io_|network_|oom_|\w+_pressure")
_BARE: Final = frozenset({"type", "stream", "state", "content", "content_b64", "payload", "command"})
_STREAMS: Final = {records.Stream.STDOUT: "stdout", records.Stream.STDERR: "stderr"}


class Pattern(NamedTuple):
    """Which topics: all that begin with `prefix`, or the one that is `prefix` exactly."""

    prefix: str
    exact: bool

    def matches(self, topic: str) -> bool:
        """Whether the topic is wanted; a subscription alone also brings those that are longer."""
        return topic == self.prefix if self.exact else topic.startswith(self.prefix)


@click.command(epilog="Example: joblet tap 'log.*'")
@click.argument("pattern")
@base_dir_option
@click.option("--json", "as_json", is_flag=True, help="One JSON object a line.")
def tap(pattern: str, base_dir: Path | None, *, as_json: bool) -> None:
    """Subscribe to PATTERN (log.*, metrics.*, job.*, * or one topic) and print what comes, until Ctrl-C.

    A tap that reads too slowly misses messages; it never slows anything down.
    """
    wanted = parse_pattern(pattern)
    layout = layout_of(load_settings(None, base_dir=base_dir))
    try:
        present = (layout.run / EVENTS.file).exists()
    except PermissionError as cause:
        raise unavailable(
            f"{layout.run} is closed to you", "run it as root or as a member of the joblet group"
        ) from cause
    if not present:
        raise unavailable(f"no node runs on {layout.base}", "start it with joblet up, or give --base-dir")
    os.chdir(layout.base)  # see Layout.from_base
    asyncio.run(_print(layout.from_base().run, wanted, as_json=as_json))


def parse_pattern(text: str) -> Pattern:
    """The topics that `text` means. Raises JobletError(INVALID)."""
    if not _PATTERN.fullmatch(text):
        raise invalid(
            f"malformed pattern {text[:64]!r}", "use log.*, metrics.*, job.*, * or a topic such as log.JOB-ID"
        )
    return Pattern(text.removesuffix("*"), exact=not text.endswith("*"))


def lines(topic: str, body: Body, *, as_json: bool) -> Iterator[str]:
    """What to print for one message."""
    for time_ns, fields in _entries(body):
        if as_json:
            yield json.dumps({"topic": topic, "timestamp": time_ns, **fields})
        else:
            words = " ".join(_word(key, value) for key, value in _telling(fields))
            yield f"{format_time_ns(time_ns) if time_ns else '-'} {escape_line(topic)} {words}"


async def _print(run_dir: Path, wanted: Pattern, *, as_json: bool) -> None:
    transport = ZeroMQ(run_dir)
    subscriber = Subscriber(transport)
    subscriber.subscribe(wanted.prefix)
    printing = asyncio.create_task(_pump(subscriber, wanted, as_json=as_json))
    loop = asyncio.get_running_loop()
    for number in (signal.SIGINT, signal.SIGTERM):
        loop.add_signal_handler(number, printing.cancel)
    try:
        await asyncio.wait({printing})
        if not printing.cancelled():
            printing.result()
    finally:
        transport.close()


async def _pump(subscriber: Subscriber, wanted: Pattern, *, as_json: bool) -> None:
    async for topic, message in subscriber.messages():
        if wanted.matches(topic):
            for line in lines(topic, message.body, as_json=as_json):
                click.echo(line)


def _entries(body: Body) -> Iterator[tuple[int, dict[str, Any]]]:
    match body:
        case LogRecords():
            yield from _of_records(body.records)
        case LogMarker():
            yield 0, {"type": "marker", "marker": body.marker, "last_sequence": body.last_sequence}
        case StoreMetric():
            fields = msgspec.to_builtins(body)
            yield fields.pop("time_ns"), {"type": "metric", **fields}
        case JobChanged():
            job = body.job
            fields = {"type": "job", "job": job.id, "state": job.state.value, "owner": job.owner, "pid": job.pid}
            fields |= {"exit_code": job.exit_code, "signal": job.signal, "reason": job.reason, "deleted": body.deleted}
            fields |= {"usage": msgspec.to_builtins(job.usage), "command": [job.spec.command, *job.spec.args]}
            yield job.ended_at_ns or job.started_at_ns or job.created_at_ns, fields
        case _:
            yield 0, {"type": type(body).__name__}


def _of_records(data: bytes) -> Iterator[tuple[int, dict[str, Any]]]:
    try:
        for record in records.decode_all(data):
            word = _WORDS.get(records.RecordType(record.type), "?") if record.type in _WORDS else str(record.type)
            if word != "output":
                payload = bytes(record.payload).decode("utf-8", "replace")
                yield record.time_ns, {"type": word, "sequence": record.sequence, "payload": payload}
                continue
            stream = _STREAMS.get(records.Stream(record.stream), "none")
            pieces = bytes(record.payload).split(b"\n")
            if not record.partial and not pieces[-1]:
                pieces.pop()  # what follows the last line end
            for number, piece in enumerate(pieces):
                yield (
                    record.time_ns,
                    {
                        "type": word,
                        "stream": stream,
                        "sequence": record.sequence + number,
                        **({"partial": True} if record.partial else {}),
                        **_content(piece),
                    },
                )
    except records.CorruptRecord as corrupt:
        yield 0, {"type": "corrupt", "detail": str(corrupt)}


def _content(piece: bytes) -> dict[str, str]:
    try:
        return {"content": piece.decode("utf-8")}
    except UnicodeDecodeError:
        return {"content_b64": base64.b64encode(piece).decode()}


def _telling(fields: dict[str, Any]) -> Iterator[tuple[str, Any]]:
    """What people are told: usage field by field, and figures that not every job has only where they are not zero."""
    for key, value in fields.items():
        if key == "usage":
            yield from _telling(value or {})
        elif value or not _OFTEN_ZERO.match(key):
            yield key, value


def _word(key: str, value: Any) -> str:
    """One field for people: the telling ones bare, the others as key=value."""
    if key == "content_b64":
        value = base64.b64decode(value).decode("utf-8", "backslashreplace")
    if key == "command":
        value = " ".join(value)
    if key == "sequence":
        return f"#{value}"
    if key.endswith("_bytes"):
        return f"{key}={format_size(value)}"
    shown = escape_line(str(value))
    return shown if key in _BARE else f"{key}={shown}"
