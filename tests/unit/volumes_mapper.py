"""A device mapper without a kernel, to the byte of linux/dm-ioctl.h, and a host around it.

Here: what the kernel keeps of mappings, and how it reads and writes the buffers of ioctl(2). Written from the header,
not from the code under test.
"""

import errno
import os
import struct
from collections.abc import Iterator
from contextlib import contextmanager
from typing import NoReturn

from common.identifiers import VolumeId
from services.volumes.linux.dm import Call, Control

ACTIVE, BUFFER_FULL, SECURE, DEFERRED = 1 << 5, 1 << 8, 1 << 15, 1 << 17
FIRST_MINOR = 300  # above 255, where a device number is no simple shift any more
MAPPER_MAJOR = 253


class Table:
    """Of one target."""

    def __init__(self, sectors: int, kind: str, parameters: str) -> None:
        self.sectors = sectors
        self.kind = kind
        self.parameters = parameters

    @property
    def below(self) -> int:
        """The device that a crypt target names."""
        major, minor = self.parameters.split()[3].split(":")
        return os.makedev(int(major), int(minor))


class Mapped:
    """One mapping."""

    def __init__(self, device: int, uuid: str) -> None:
        self.device = device
        self.uuid = uuid
        self.openers = 0
        self.live: Table | None = None
        self.loaded: Table | None = None
        self.leaving = False


class Kernel:
    """Takes the requests. `fails`: command number → errno, once."""

    def __init__(self) -> None:
        self.mappings: dict[str, Mapped] = {}
        self.commands: list[int] = []
        self.fails: dict[int, int] = {}
        self.ciphers = {"aes-xts-plain64"}
        self.buffers: list[bytearray] = []
        self._minor = FIRST_MINOR

    def __call__(self, request: int, buffer: bytearray) -> None:
        """ioctl(2) on the control node."""
        assert request >> 8 == 0xC138FD, hex(request)
        number = request & 0xFF
        self.commands.append(number)
        self.buffers.append(buffer)
        assert struct.unpack_from("=3I", buffer) <= (4, 47, 0)
        size, start, _, _, flags = struct.unpack_from("=IIIiI", buffer, 12)
        assert size == len(buffer) > 1024
        if number in self.fails:
            _refuse(self.fails.pop(number))
        name, uuid = _text(buffer, 48, 128), _text(buffer, 176, 129)
        assert not (name and uuid) or number == 3
        match number:
            case 0:
                struct.pack_into("=3I", buffer, 0, 4, 47, 0)
            case 2:
                self._list(buffer)
            case 3:
                self._create(name, uuid)
            case 4:
                self._remove(name, deferred=bool(flags & DEFERRED))
                return
            case 6:
                self._resume(name)
            case 9:
                assert flags & SECURE
                self._load(name, bytes(buffer[start:]))
            case 11:
                table = self._of(name).live
                below = [table.below] if table and table.kind == "crypt" else []
                struct.pack_into(f"=II{len(below)}Q", buffer, 312, len(below), 0, *below)
                struct.pack_into("=I", buffer, 16, 312)
            case 14:
                assert _text(buffer, start + 8, 100) == "@cancel_deferred_remove"
                self._of(name).leaving = False
            case _:
                assert number == 7, number
        if name:
            self._tell(buffer, self._of(name))

    def close(self, name: str) -> None:
        """One opener less."""
        mapped = self._of(name)
        mapped.openers -= 1
        if mapped.leaving and mapped.openers == 0:
            del self.mappings[name]

    def _of(self, name: str) -> Mapped:
        return self.mappings[name] if name in self.mappings else _refuse(errno.ENXIO)

    def _create(self, name: str, uuid: str) -> None:
        if name in self.mappings or (uuid and uuid in {each.uuid for each in self.mappings.values()}):
            _refuse(errno.EBUSY)
        self._minor += 1
        self.mappings[name] = Mapped(os.makedev(MAPPER_MAJOR, self._minor), uuid)

    def _remove(self, name: str, *, deferred: bool) -> None:
        mapped = self._of(name)
        if not mapped.openers:
            del self.mappings[name]
        elif deferred:
            mapped.leaving = True
        else:
            _refuse(errno.EBUSY)

    def _load(self, name: str, target: bytes) -> None:
        first, sectors, _, _ = struct.unpack_from("=QQiI", target)
        kind = target[24:40].rstrip(b"\0").decode()
        parameters = target[40 : target.index(b"\0", 40)].decode()
        assert first == 0
        if kind == "crypt":
            cipher, key, skipped, _, begins = parameters.split()
            assert (len(bytes.fromhex(key)), skipped, begins) == (64, "0", "0")
            if cipher not in self.ciphers:
                _refuse(errno.ENOENT)
        self._of(name).loaded = Table(sectors, kind, parameters)

    def _resume(self, name: str) -> None:
        mapped = self._of(name)
        if mapped.loaded is None and mapped.live is None:
            _refuse(errno.EINVAL)
        mapped.live, mapped.loaded = mapped.loaded or mapped.live, None

    def _list(self, buffer: bytearray) -> None:
        entries = [
            struct.pack("=QI", mapped.device, 0) + name.encode() + b"\0" for name, mapped in self.mappings.items()
        ] or [struct.pack("=QI", 0, 0)]
        padded = [entry + bytes(-len(entry) % 8) for entry in entries]
        for number, entry in enumerate(padded[:-1]):
            padded[number] = entry[:8] + struct.pack("=I", len(entry)) + entry[12:]
        content = b"".join(padded)
        struct.pack_into("=I", buffer, 16, 312)
        if 312 + len(content) > len(buffer):
            struct.pack_into("=I", buffer, 28, BUFFER_FULL)
        else:
            buffer[312 : 312 + len(content)] = content

    def _tell(self, buffer: bytearray, mapped: Mapped) -> None:
        flags = (ACTIVE if mapped.live else 0) | (DEFERRED if mapped.leaving else 0)
        struct.pack_into("=iI", buffer, 24, mapped.openers, flags)
        struct.pack_into("=Q", buffer, 40, mapped.device)


class FakeHost:
    """Block devices by path and size; mappings have a size of their own."""

    def __init__(self, kernel: Kernel) -> None:
        self.kernel = kernel
        self.call: Call = kernel
        self.devices = {"/dev/loop1": os.makedev(7, 1), "/dev/loop2": os.makedev(7, 2)}
        self.sizes = dict.fromkeys(self.devices.values(), 1000)
        self.dropped: list[VolumeId] = []

    @contextmanager
    def control(self) -> Iterator[Control]:
        """The kernel."""
        yield Control(self.call)

    def number(self, path: str) -> int:
        """Of a device that is there."""
        return self.devices[path]

    def sectors(self, device: int) -> int:
        """Of a device, or of a mapping: its table's."""
        live = {each.device: each.live.sectors if each.live else 0 for each in self.kernel.mappings.values()}
        return {**self.sizes, **live}[device]

    def of(self, device: int, volume: VolumeId) -> str:
        """A path that tells both."""
        return f"/dev/{volume}-{os.minor(device)}"

    def drop(self, volume: VolumeId) -> None:
        """Noted."""
        self.dropped.append(volume)


def _text(buffer: bytearray, at: int, length: int) -> str:
    return bytes(buffer[at : at + length]).split(b"\0", 1)[0].decode()


def _refuse(number: int) -> NoReturn:
    raise OSError(number, os.strerror(number))
