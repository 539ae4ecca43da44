"""What START, EXIT and GAP of a journal say, parsed once into events. The JSON is drawn in docs/protocol.md."""

from typing import Literal

import msgspec

from common.messages.jobs import Usage
from common.records import RecordType
from services.executor.events import Ended, Failure, OutputLost, Started
from services.executor.journal import Note

NOTE_VERSION = 1


class _Start(msgspec.Struct, frozen=True, kw_only=True):
    version: int
    pid: int


class _Exit(Usage, frozen=True, kw_only=True):
    version: int
    outcome: Literal["exited", "signaled", "not_started"]
    exit_code: int | None = None
    signal: int | None = None
    ended_by: Literal["", "client", "timeout"] = ""
    failure: Failure | None = None


class _Gap(msgspec.Struct, frozen=True, kw_only=True):
    bytes: int = 0


class UnreadableNote(Exception):
    """A START or EXIT whose checksum is right and whose JSON is not what this version knows."""


def parse_note(note: Note) -> Started | Ended | OutputLost:
    """The event in a START, EXIT or GAP record. Raises UnreadableNote."""
    if note.type is RecordType.GAP:
        return _lost(note)
    try:
        if note.type is RecordType.START:
            start = msgspec.json.decode(note.payload, type=_Start)
            _check_version(start.version)
            return Started(at_ns=note.time_ns, pid=start.pid)
        end = msgspec.json.decode(note.payload, type=_Exit)
        _check_version(end.version)
    except msgspec.MsgspecError as cause:
        raise UnreadableNote(f"{note.type.name} record: {cause}") from cause
    return Ended(
        at_ns=note.time_ns,
        outcome=end.outcome,
        exit_code=end.exit_code,
        signal=end.signal,
        ended_by=end.ended_by,
        usage=Usage(**{name: getattr(end, name) for name in Usage.__struct_fields__}),
        failure=end.failure,
        last_sequence=note.last_sequence,
    )


def _lost(note: Note) -> OutputLost:
    try:
        lost_bytes = max(0, msgspec.json.decode(note.payload, type=_Gap).bytes)
    except msgspec.MsgspecError:
        lost_bytes = 0  # what matters, which entries, is in the header
    first = note.last_sequence - note.lines + 1
    return OutputLost(at_ns=note.time_ns, first=first, entries=note.lines, bytes=lost_bytes)


def _check_version(version: int) -> None:
    if version != NOTE_VERSION:
        raise UnreadableNote(f"record has version {version}, this program knows version {NOTE_VERSION}")
