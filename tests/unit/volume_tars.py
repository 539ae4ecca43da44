"""Archives for tests of volumes: made by tarfile, packed and unpacked by the service's own code in this process."""

import io
import os
import socket
import stat
import tarfile
import threading
from pathlib import Path

from services.volumes.descent import walk
from services.volumes.tarreader import Reader
from services.volumes.tarstream import Incoming, Outgoing
from services.volumes.tarwriter import Writer
from tests.waiting import SLOWNESS

STALL_S = 10.0 * SLOWNESS

Member = tuple[tarfile.TarInfo, bytes]


def member(name: str, content: bytes = b"", kind: bytes = tarfile.REGTYPE, **fields: object) -> Member:
    """One entry."""
    info = tarfile.TarInfo(name)
    info.type, info.size = kind, len(content)
    for key, value in fields.items():
        setattr(info, key, value)
    return info, content


def archive(*members: Member) -> bytes:
    """All of it, with its end."""
    return b"".join(entry(*each) for each in members) + bytes(1024)


def entry(info: tarfile.TarInfo, content: bytes) -> bytes:
    """Header, content and what fills the last block up."""
    return info.tobuf(tarfile.PAX_FORMAT, "utf-8", "surrogateescape") + content + bytes(-len(content) % 512)


def unpack(content: bytes, root: Path, *, stall_s: float = STALL_S) -> Reader:
    """Unpack, as the process of a stream does once it has its rights."""
    ours, theirs = socket.socketpair()
    sender = threading.Thread(target=_send, args=(theirs, content))
    sender.start()
    directory = os.open(root, os.O_RDONLY | os.O_DIRECTORY)
    before = os.umask(0)
    try:
        reader = Reader(Incoming(ours, stall_s=stall_s), directory)
        reader.run()
        return reader
    finally:
        os.umask(before)
        os.close(directory)
        ours.close()
        sender.join()


def pack(root: Path, outgoing: type[Outgoing] = Outgoing) -> tuple[bytes, Writer]:
    """Pack it likewise."""
    ours, theirs = socket.socketpair()
    received = io.BytesIO()
    receiver = threading.Thread(target=_receive, args=(theirs, received))
    receiver.start()
    directory = os.open(root, os.O_RDONLY | os.O_DIRECTORY)
    status = root.stat()
    writer = Writer(outgoing(ours, stall_s=STALL_S), uid=status.st_uid, gid=status.st_gid)
    try:
        walk(directory, writer)
        writer.finish()
    finally:
        os.close(directory)
        ours.close()
        receiver.join()
    return received.getvalue(), writer


def _send(end: socket.socket, content: bytes) -> None:
    with end:
        try:
            end.sendall(content)
        except (BrokenPipeError, ConnectionResetError):
            return


def _receive(end: socket.socket, into: io.BytesIO) -> None:
    with end:
        while piece := end.recv(2**20):
            into.write(piece)


def tree(root: Path) -> dict[str, tuple[object, ...]]:
    """What is below `root`: by path, all that an export keeps. Names of one file have the same first name."""
    found: dict[str, tuple[object, ...]] = {}
    first: dict[int, str] = {}
    for path in sorted(root.rglob("*"), key=str):
        status = path.lstat()
        content: bytes | str | None = None
        if stat.S_ISREG(status.st_mode):
            content = path.read_bytes()
        elif stat.S_ISLNK(status.st_mode):
            content = str(path.readlink())
        relative = str(path.relative_to(root))
        same = first.setdefault(status.st_ino, relative)
        found[relative] = (stat.filemode(status.st_mode), content, status.st_mtime_ns, status.st_nlink, same)
    return found
