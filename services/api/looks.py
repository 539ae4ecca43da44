"""What the keeper saw of the certificate files at one look, and how it says so over its socket.

    keeper → api   4 bytes: length of the rest, big-endian; then for each of cert, key, ca, crl:
                   state u8 (0 not watched, 1 read, 2 not readable), mode u32, errno u32, length u32, content
    api → keeper   any byte: look now; the end of the stream: end

Here: the values and the frame; nothing but the standard library, because the keeper imports this. Not here: whether
what was seen is any good (`material.py`).
"""

import struct
from typing import Final, NamedTuple

FILE_BYTES_MAX: Final = 1024 * 1024
"""As common/tls.py has it. One byte more is read and sent, so that the other side sees that it is too large."""

LENGTH: Final = struct.Struct("!I")
_FILE: Final = struct.Struct("!BIII")
_UNWATCHED, _READ, _FAILED = range(3)


class Reading(NamedTuple):
    """One file at one look: its bytes and permission bits, or the error number (errno.h) that it gave instead."""

    content: bytes
    mode: int = 0
    error: int = 0


class Look(NamedTuple):
    """All the files at one look. None: not watched, because the configuration holds the text itself."""

    cert: Reading | None
    key: Reading | None
    ca: Reading | None
    crl: Reading | None


FRAME_BYTES_MAX: Final = len(Look._fields) * (_FILE.size + FILE_BYTES_MAX + 1)


def packed(look: Look) -> bytes:
    """The frame without its length."""
    parts: list[bytes] = []
    for reading in look:
        if reading is None:
            parts.append(_FILE.pack(_UNWATCHED, 0, 0, 0))
        else:
            state = _FAILED if reading.error else _READ
            parts += [_FILE.pack(state, reading.mode, reading.error, len(reading.content)), reading.content]
    return b"".join(parts)


def unpacked(frame: bytes) -> Look:
    """The look in a frame. ValueError when it is none."""
    readings: list[Reading | None] = []
    start = 0
    for _ in Look._fields:
        if len(frame) < start + _FILE.size:
            raise ValueError("the frame is cut off")
        state, mode, error, length = _FILE.unpack_from(frame, start)
        start += _FILE.size
        if length > FILE_BYTES_MAX + 1 or len(frame) < start + length:
            raise ValueError("the frame is cut off, or a file in it is too large")
        if state > _FAILED or (state == _FAILED) != bool(error):
            raise ValueError(f"state {state} with error {error}")
        readings.append(None if state == _UNWATCHED else Reading(frame[start : start + length], mode, error))
        start += length
    if start != len(frame):
        raise ValueError("something follows the frame")
    return Look(*readings)
