"""What the keeper says over its socket is what api hears, and nothing else is heard; and how it looks at files."""

import os
import socket
import struct
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from services.api.keeper_program import watch
from services.api.looks import FILE_BYTES_MAX, FRAME_BYTES_MAX, LENGTH, Look, Reading, packed, unpacked

readings = (
    st.none()
    | st.builds(Reading, st.binary(max_size=50), st.integers(0, 0o7777), st.just(0))
    | st.builds(lambda error: Reading(b"", error=error), st.integers(1, 200))
)


@given(st.builds(Look, readings, readings, readings, readings))
def test_a_look_comes_as_it_was_sent(look: Look) -> None:
    """Contents, modes, errors, and what is not watched."""
    assert unpacked(packed(look)) == look


@given(st.binary(max_size=200))
def test_anything_else_is_refused_with_a_value_error(frame: bytes) -> None:
    """Or is a look that packs to the same bytes."""
    with suppress(ValueError):
        assert packed(unpacked(frame)) == frame


def test_a_look_has_a_largest_frame() -> None:
    """Four files of one byte more than is allowed, which the other side then refuses."""
    largest = packed(Look(*[Reading(b"x" * (FILE_BYTES_MAX + 1), 0o600)] * 4))
    assert len(largest) == FRAME_BYTES_MAX
    assert unpacked(largest).cert == Reading(b"x" * (FILE_BYTES_MAX + 1), 0o600)
    with pytest.raises(ValueError, match="too large"):
        unpacked(struct.pack("!BIII", 1, 0, 0, FILE_BYTES_MAX + 2) + b"x" * (FILE_BYTES_MAX + 2))


class Watched:
    """`watch` in a thread, from the other side of its socket."""

    def __init__(self, channel: socket.socket) -> None:
        self._channel = channel

    def look(self) -> Look:
        """The next one."""
        (length,) = LENGTH.unpack(self._exactly(LENGTH.size))
        return unpacked(self._exactly(length))

    def ask(self) -> None:
        """Look now."""
        self._channel.send(b"l")

    def _exactly(self, size: int) -> bytes:
        data = b""
        while len(data) < size:
            data += self._channel.recv(size - len(data))
        return data


@contextmanager
def watching(*paths: str, interval_s: float = 0.01) -> Iterator[Watched]:
    """Someone who looks at these paths; ends with the block."""
    ours, theirs = socket.socketpair()
    ours.settimeout(30)
    with theirs:
        thread = threading.Thread(target=watch, args=(theirs, paths, interval_s))
        thread.start()
        try:
            yield Watched(ours)
        finally:
            ours.close()
            thread.join(30)
            assert not thread.is_alive()


def test_every_kind_of_change_is_seen_and_nothing_is_said_without_one(tmp_path: Path) -> None:
    """Content, mode, another file by rename, by a link; gone and back. Each gives one look."""
    first, second, link = tmp_path / "first", tmp_path / "second", tmp_path / "link"
    first.write_bytes(b"one")
    first.chmod(0o600)
    link.symlink_to(first)

    def write(content: bytes) -> None:
        """In place and in one step: whoever looks meanwhile sees the old content or the new one."""
        with first.open("r+b", buffering=0) as file:
            file.write(content)

    with watching(str(link), "", "", str(tmp_path / "none")) as keeper:
        assert keeper.look() == Look(Reading(b"one", 0o600), None, None, Reading(b"", error=2))
        write(b"two")
        assert keeper.look().cert == Reading(b"two", 0o600)
        first.chmod(0o640)
        assert keeper.look().cert == Reading(b"two", 0o640)
        second.write_bytes(b"two")
        second.chmod(0o600)
        second.rename(first)
        assert keeper.look().cert == Reading(b"two", 0o600)
        status = first.stat()
        write(b"six")  # the same size, and then the same time
        os.utime(first, ns=(status.st_atime_ns, status.st_mtime_ns))
        assert keeper.look().cert == Reading(b"six", 0o600)
        second.symlink_to(tmp_path)
        second.rename(link)
        assert keeper.look().cert == Reading(b"", error=21)
        link.unlink()
        assert keeper.look().cert == Reading(b"", error=2)
        os.mkfifo(link)
        assert keeper.look().cert == Reading(b"", error=22)


def test_it_looks_when_it_is_asked(tmp_path: Path) -> None:
    """With an hour between two looks."""
    file = tmp_path / "file"
    file.write_bytes(b"one")
    with watching(str(file), "", "", "", interval_s=3600) as keeper:
        keeper.look()
        file.write_bytes(b"other")
        keeper.ask()
        seen = keeper.look().cert
        assert seen is not None
        assert seen.content == b"other"


def test_a_file_that_is_too_large_is_not_read_to_its_end(tmp_path: Path) -> None:
    """One byte more than is allowed tells enough."""
    file = tmp_path / "file"
    file.touch()
    os.truncate(file, 10 * FILE_BYTES_MAX)
    with watching(str(file), "", "", "") as keeper:
        seen = keeper.look().cert
        assert seen is not None
        assert len(seen.content) == FILE_BYTES_MAX + 1
