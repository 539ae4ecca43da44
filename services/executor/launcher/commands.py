"""What the executor tells a monitor through the FIFO `control`: 16 bytes, one write.

    offset size
         0    4  magic     b"JLC1"
         4    2  command   1 STOP, 2 SPACE_FREED
         6    2  signal    STOP: sent to the main process's group; 9 kills the whole job at once
         8    8  grace_ms  STOP: after it SIGKILL for everything in the job

Used on both sides: by the executor's `control.py` and by the monitor. Only the standard library is imported.
"""

import struct
from collections.abc import Iterator
from enum import IntEnum
from typing import Final, NamedTuple

MAGIC: Final = b"JLC1"
FRAME: Final = struct.Struct("<4sHHQ")


class Verb(IntEnum):
    """What is to be done."""

    STOP = 1
    SPACE_FREED = 2


class Command(NamedTuple):
    """One command."""

    verb: Verb
    signal: int = 0
    grace_ms: int = 0


def encode_command(command: Command) -> bytes:
    """The 16 bytes."""
    return FRAME.pack(MAGIC, command.verb, command.signal, command.grace_ms)


def decode_commands(received: bytes) -> Iterator[Command]:
    """The commands in `received`; a frame that is none is passed over, so a newer executor cannot harm a monitor."""
    for offset in range(0, len(received) - FRAME.size + 1, FRAME.size):
        magic, verb, signal, grace_ms = FRAME.unpack_from(received, offset)
        if magic == MAGIC and verb in (Verb.STOP, Verb.SPACE_FREED):
            yield Command(Verb(verb), signal, grace_ms)
