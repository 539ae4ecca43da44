"""The device mapper: ioctl(2) on /dev/mapper/control. Header: linux/dm-ioctl.h.

Here: the structures, one method a command. Not here: which mappings there are and when (`encryption/dmcrypt.py`). All
raise OSError; ENXIO means that there is no such mapping. What may hold a key is a bytearray, wiped after the call, and
the kernel is told to wipe its own copies (DM_SECURE_DATA_FLAG).

    struct dm_ioctl │ data of the command, from offset 312 on
"""

import errno
import fcntl
import functools
import os
import struct
from collections.abc import Callable, Iterator
from typing import Final, NamedTuple

from common.linux.libc import failed
from services.volumes.linux.wiping import wipe

CONTROL_MAJOR: Final = 10
CONTROL_MINOR: Final = 236
"""MISC_MAJOR and MAPPER_CTRL_MINOR of linux/major.h and linux/miscdevice.h: opening it makes the kernel load dm_mod."""

_HEADER: Final = struct.Struct("=3IIIIiIIIQ128s129s7x")
_TARGET: Final = struct.Struct("=QQiI16s")  # struct dm_target_spec
_LISTED: Final = struct.Struct("=QI")  # struct dm_name_list, without the name
_UNDER: Final = struct.Struct("=II")  # struct dm_target_deps, without the devices
_MESSAGE: Final = struct.Struct("=Q")  # struct dm_target_msg, without the message
assert (_HEADER.size, _TARGET.size) == (312, 40)

_NAME_BYTES_MAX: Final = 127
_ROOM_BYTES: Final = 16 * 1024
"""Of an answer at first. Always above 1024: Python copies what is smaller through a buffer that nobody wipes."""
_ROOM_BYTES_MAX: Final = 16 * 1024 * 1024

_INTERFACE: Final = (4, 0, 0)

_ACTIVE_PRESENT: Final = 1 << 5
_BUFFER_FULL: Final = 1 << 8
_SKIP_LOCKFS: Final = 1 << 10
_SECURE_DATA: Final = 1 << 15
_DEFERRED_REMOVE: Final = 1 << 17


def _command(number: int) -> int:
    """_IOWR(0xfd, number, struct dm_ioctl)."""
    return 3 << 30 | _HEADER.size << 16 | 0xFD << 8 | number


VERSION: Final = _command(0)
LIST_DEVICES: Final = _command(2)
DEV_CREATE: Final = _command(3)
DEV_REMOVE: Final = _command(4)
DEV_SUSPEND: Final = _command(6)
DEV_STATUS: Final = _command(7)
TABLE_LOAD: Final = _command(9)
TABLE_DEPS: Final = _command(11)
TARGET_MSG: Final = _command(14)

Call = Callable[[int, bytearray], object]
"""ioctl(2): a request, and a buffer that is changed in place."""


class Mapping(NamedTuple):
    """What the kernel says of one."""

    device: int  # dev_t of the mapped device
    openers: int  # mounts of it are among them
    active: bool  # it has a table; else whoever made it was interrupted
    leaving: bool  # it goes when its last opener does


class Control:
    """The device mapper, through `call`."""

    def __init__(self, call: Call) -> None:
        self._call = call

    @classmethod
    def on(cls, descriptor: int) -> "Control":
        """Through an open control node."""
        return cls(functools.partial(fcntl.ioctl, descriptor))

    def version(self) -> tuple[int, int, int]:
        """Of the kernel's interface."""
        buffer = self._do("DM_VERSION", VERSION)
        major, minor, patch = struct.unpack_from("=3I", buffer)
        return major, minor, patch

    def names(self) -> tuple[str, ...]:
        """Of all mappings on this host, whoever made them."""
        room = _ROOM_BYTES
        while room <= _ROOM_BYTES_MAX:
            buffer = self._do("DM_LIST_DEVICES", LIST_DEVICES, room=room)
            if not _flags(buffer) & _BUFFER_FULL:
                return tuple(_listed(buffer))
            room *= 4
        raise failed("DM_LIST_DEVICES", errno.E2BIG)

    def status(self, name: str) -> Mapping | None:
        """The mapping `name`; None: there is none."""
        try:
            buffer = self._do("DM_DEV_STATUS", DEV_STATUS, name)
        except OSError as cause:
            if cause.errno == errno.ENXIO:
                return None
            raise
        return _mapping(buffer)

    def create(self, name: str, uuid: str) -> Mapping:
        """A mapping without a table. EBUSY: the name or the uuid is taken."""
        return _mapping(self._do("DM_DEV_CREATE", DEV_CREATE, name, uuid=uuid))

    def load(self, name: str, sectors: int, kind: str, parameters: bytearray) -> None:
        """Give it a table of one target, which counts from the next `resume` on. `parameters` are wiped."""
        try:
            specified = _TARGET.pack(0, sectors, 0, 0, kind.encode())
            self._do("DM_TABLE_LOAD", TABLE_LOAD, name, data=(specified, parameters, b"\0"), targets=1)
        finally:
            wipe(parameters)

    def resume(self, name: str) -> None:
        """Let the loaded table count, and requests through.

        The file system on it is not frozen for that (DM_SKIP_LOCKFS): an exchanged table maps the same sectors alike.
        """
        self._do("DM_DEV_SUSPEND", DEV_SUSPEND, name, flags=_SKIP_LOCKFS)

    def under(self, name: str) -> tuple[int, ...]:
        """dev_t of each device that its table uses. DM_TABLE_STATUS would tell as well, and the key with it."""
        buffer = self._do("DM_TABLE_DEPS", TABLE_DEPS, name)
        start = _data_start(buffer)
        count, _ = _UNDER.unpack_from(buffer, start)
        return struct.unpack_from(f"={count}Q", buffer, start + _UNDER.size)

    def remove(self, name: str, *, deferred: bool) -> None:
        """Remove it. While it is open: EBUSY, or with `deferred` when its last opener goes."""
        self._do("DM_DEV_REMOVE", DEV_REMOVE, name, flags=_DEFERRED_REMOVE if deferred else 0)

    def stay(self, name: str) -> None:
        """Take a deferred removal back. EBUSY or ENXIO: it is going, or gone."""
        self._do("DM_TARGET_MSG", TARGET_MSG, name, data=(_MESSAGE.pack(0), b"@cancel_deferred_remove\0"))

    def _do(
        self,
        call: str,
        command: int,
        name: str = "",
        *,
        uuid: str = "",
        flags: int = 0,
        data: tuple[bytes | bytearray, ...] = (),
        targets: int = 0,
        room: int = _ROOM_BYTES,
    ) -> bytearray:
        assert len(name) <= _NAME_BYTES_MAX, name
        buffer = bytearray(room)
        secret = _SECURE_DATA if command == TABLE_LOAD else 0
        _HEADER.pack_into(
            buffer,
            0,
            *_INTERFACE,
            *(room, _HEADER.size, targets, 0, flags | secret, 0, 0, 0),
            *(name.encode(), uuid.encode()),
        )
        at = _HEADER.size
        for part in data:
            assert at + len(part) <= room
            buffer[at : at + len(part)] = part
            at += len(part)
        try:
            self._call(command, buffer)
        except OSError as cause:
            raise failed(call, cause.errno or 0, name) from cause
        finally:
            if secret:
                wipe(buffer)
        return buffer


def open_control(path: str) -> int:
    """A descriptor of the control node at `path`; the caller closes it. ENODEV, ENXIO: the kernel has none."""
    return os.open(path, os.O_RDWR | os.O_CLOEXEC | os.O_NOFOLLOW)


def _flags(buffer: bytearray) -> int:
    flags: int = struct.unpack_from("=I", buffer, 28)[0]
    return flags


def _data_start(buffer: bytearray) -> int:
    start: int = struct.unpack_from("=I", buffer, 16)[0]
    return start


def _mapping(buffer: bytearray) -> Mapping:
    _, _, _, _, _, _, openers, flags, _, _, device, _, _ = _HEADER.unpack_from(buffer)
    return Mapping(device, openers, bool(flags & _ACTIVE_PRESENT), bool(flags & _DEFERRED_REMOVE))


def _listed(buffer: bytearray) -> Iterator[str]:
    at = _data_start(buffer)
    while True:
        device, following = _LISTED.unpack_from(buffer, at)
        if device == 0:  # the one entry of an empty list
            return
        start = at + _LISTED.size
        yield buffer[start : buffer.index(0, start)].decode("utf-8", "replace")
        if following == 0:
            return
        at += following
