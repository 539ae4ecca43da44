"""Files for a job: found, checked and streamed to the node.

Here: what of the local file system goes along and under which names, and the stream of UploadFiles. Not here: the
progress bar (`cli/rnx/progress.py`), what the node accepts (its settings).

The walk happens before the first byte is sent, so that an unreadable file is an error and not half an upload. Files are
opened component by component from the root of the walk, following no link (openat(2), O_NOFOLLOW): what is sent lies in
the tree that was named, even when someone changes it meanwhile.
"""

import os
import stat
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack
from pathlib import Path, PurePosixPath
from typing import Final, NamedTuple

import grpc

from cli.client.session import Session
from common.errors import JobletError, Reason, invalid
from proto.joblet.v1 import job_pb2

CHUNK_BYTES: Final = 512 * 1024
TRANSFER_TIMEOUT_S: Final = 600.0
PERMISSIONS: Final = 0o777
DEPTH_MAX: Final = 100

Kind = job_pb2.UploadEntry.Kind


class Source(NamedTuple):
    """One thing to send. `path` is its name below /work; here it is at `root` and, below that, `inside`."""

    path: str
    root: Path
    inside: PurePosixPath
    kind: job_pb2.UploadEntry.Kind
    mode: int
    size_bytes: int
    target: str = ""

    @property
    def local(self) -> Path:
        """Where it is here."""
        return self.root / self.inside


def collect(files: Sequence[Path], directories: Sequence[Path]) -> tuple[Source, ...]:
    """All that is to be sent, parents before children.

    Each of `files` comes to /work/<its name>; of each of `directories` the contents come to /work. Raises
    JobletError(INVALID) that names what cannot go along.
    """
    found: dict[str, Source] = {}
    for file in files:
        _add(found, _single_file(file))
    for directory in directories:
        for source in _tree(directory):
            _add(found, source)
    return tuple(found.values())


def total_bytes(sources: Sequence[Source]) -> int:
    """How many bytes of files will be sent."""
    return sum(source.size_bytes for source in sources)


def upload(session: Session, sources: Sequence[Source], *, sent: Callable[[int], None]) -> str:
    """Send everything; the upload id for the job's spec. `sent` is told the bytes of each piece on its way."""
    outgoing = _Outgoing(sources, sent)
    remaining = session.remaining_s()
    with session.translated():
        call = session.jobs.UploadFiles.future(outgoing.requests(), timeout=remaining or TRANSFER_TIMEOUT_S)
        outgoing.cancel = call.cancel
        try:
            response = call.result()
        except grpc.FutureCancelledError as cause:
            raise outgoing.failure or JobletError(Reason.UNAVAILABLE, "the upload was canceled") from cause
        except grpc.RpcError:
            if outgoing.failure is not None:
                raise outgoing.failure from None
            raise
        finally:
            session.cancel(call)
    return response.upload_id


class _Outgoing:
    """The requests of one upload. gRPC pulls them in a thread of its own, so a failure is kept for the caller."""

    def __init__(self, sources: Sequence[Source], sent: Callable[[int], None]) -> None:
        self._sources = sources
        self._sent = sent
        self.failure: JobletError | None = None
        self.cancel: Callable[[], object] = lambda: None

    def requests(self) -> Iterator[job_pb2.UploadFilesRequest]:
        try:
            for source in self._sources:
                yield job_pb2.UploadFilesRequest(entry=_entry(source))
                if source.kind == Kind.FILE:
                    yield from self._content(source)
        except JobletError as error:
            self.failure = error
        except OSError as error:
            self.failure = _unreadable(source.local, error)
        if self.failure is not None:
            # Just to end here would look like a complete upload to the node.
            self.cancel()

    def _content(self, source: Source) -> Iterator[job_pb2.UploadFilesRequest]:
        left = source.size_bytes
        descriptor = _open_beneath(source.root, source.inside)
        with open(descriptor, "rb", buffering=0) as file:  # noqa: PTH123  # a descriptor, not a path
            while left:
                data = file.read(min(CHUNK_BYTES, left))
                if not data:
                    raise JobletError(
                        Reason.PRECONDITION,
                        f"{source.local} shrank while it was sent",
                        detail="send it when it is at rest",
                    )
                left -= len(data)
                yield job_pb2.UploadFilesRequest(data=data)
                self._sent(len(data))


def _entry(source: Source) -> job_pb2.UploadEntry:
    return job_pb2.UploadEntry(
        path=source.path, kind=source.kind, mode=source.mode, size_bytes=source.size_bytes, target=source.target
    )


def _single_file(file: Path) -> Source:
    try:
        real = file.resolve(strict=True)  # the user named it, so a link at its end is meant
        status = real.stat()
    except (OSError, RuntimeError) as cause:
        raise _unreadable(file, cause) from cause
    if stat.S_ISDIR(status.st_mode):
        raise invalid(f"{file} is a directory", f"use --upload-dir {file} for what is in it")
    if not stat.S_ISREG(status.st_mode):
        raise invalid(f"{file} is no regular file", "only files, directories and symbolic links can be sent")
    root, inside = real.parent, PurePosixPath(real.name)
    _check_readable(root, inside)
    name = file.absolute().name
    try:
        name.encode("utf-8")
    except UnicodeEncodeError as cause:
        raise _no_text(name) from cause
    return Source(name, root, inside, Kind.FILE, stat.S_IMODE(status.st_mode) & PERMISSIONS, status.st_size)


def _tree(directory: Path) -> Iterator[Source]:
    try:
        root = directory.resolve(strict=True)
        if not root.is_dir():
            raise invalid(f"{directory} is no directory", f"use --upload {directory} for a single file")
    except (OSError, RuntimeError) as cause:
        raise _unreadable(directory, cause) from cause
    yield from _below(root, PurePosixPath())


def _below(root: Path, inside: PurePosixPath) -> Iterator[Source]:
    local = root / inside
    if len(inside.parts) > DEPTH_MAX:
        raise invalid(f"{local} lies too deep", f"at most {DEPTH_MAX} directories below the one that is sent")
    try:
        with ExitStack() as stack:
            children = sorted(stack.enter_context(os.scandir(local)), key=lambda child: child.name)
    except OSError as cause:
        raise _unreadable(local, cause) from cause
    for child in children:
        source = _child(root, inside / child.name)
        yield source
        if source.kind == Kind.DIRECTORY:
            yield from _below(root, source.inside)


def _child(root: Path, path: PurePosixPath) -> Source:
    local = root / path
    try:
        str(path).encode("utf-8")
        status = local.lstat()
        mode = stat.S_IMODE(status.st_mode) & PERMISSIONS
        if stat.S_ISREG(status.st_mode):
            _check_readable(root, path)
            return Source(str(path), root, path, Kind.FILE, mode, status.st_size)
        if stat.S_ISDIR(status.st_mode):
            return Source(str(path), root, path, Kind.DIRECTORY, mode, 0)
        if stat.S_ISLNK(status.st_mode):
            return Source(str(path), root, path, Kind.SYMLINK, PERMISSIONS, 0, _inside_target(local, path))
    except UnicodeEncodeError as cause:
        raise _no_text(str(path)) from cause
    except OSError as cause:
        raise _unreadable(local, cause) from cause
    raise invalid(f"{local} is a device, a pipe or a socket", "only files, directories and symbolic links can be sent")


def _inside_target(local: Path, path: PurePosixPath) -> str:
    """Where the link points to; refused when that is not inside the tree, as it would mean something else there."""
    target = str(local.readlink())
    target.encode("utf-8")
    if target.startswith("/"):
        raise invalid(f"{local} is a link to {target}, an absolute path", "make it relative, or leave it out")
    depth = len(path.parent.parts)
    for part in PurePosixPath(target).parts:
        depth += -1 if part == ".." else 1
        if depth < 0:
            raise invalid(f"{local} is a link to {target}, outside of what is sent", "send that, too, or leave it out")
    return target


def _open_beneath(root: Path, inside: PurePosixPath) -> int:
    """A descriptor of the file; OSError(ELOOP or ENOTDIR) when any component below `root` is a link."""
    *directories, name = inside.parts
    with ExitStack() as stack:
        at = os.open(root, os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
        stack.callback(os.close, at)
        for directory in directories:
            at = os.open(directory, os.O_PATH | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC, dir_fd=at)
            stack.callback(os.close, at)
        # O_NONBLOCK: should the file have become a pipe meanwhile, opening it does not wait for a writer.
        return os.open(name, os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC | os.O_NONBLOCK, dir_fd=at)


def _check_readable(root: Path, inside: PurePosixPath) -> None:
    os.close(_open_beneath(root, inside))


def _add(found: dict[str, Source], source: Source) -> None:
    other = found.get(source.path)
    if other is not None and not (other.kind == source.kind == Kind.DIRECTORY):
        raise invalid(f"{source.local} and {other.local} would both be /work/{source.path}", "rename one of them")
    found.setdefault(source.path, source)


def _no_text(name: str) -> JobletError:
    return invalid(f"the name {name!r} is no UTF-8", "rename the file")


def _unreadable(path: Path, cause: Exception) -> JobletError:
    reason = cause.strerror if isinstance(cause, OSError) else str(cause)
    return invalid(f"cannot send {path}", reason or str(cause))
