"""Receiving an upload: from a client's stream to a tar archive that a job can take.

Belongs here: the order of the stream, the bounds of one upload, and writing, which happens in worker threads so that a
slow disk delays nobody else. Does not belong here: what an entry may be (`entries.py`), whose uploads those are
(`registry.py`).
"""

import asyncio
import os
from collections.abc import AsyncIterator, Callable
from typing import Final

from common.config.settings import Uploads
from common.errors import JobletError, Reason, exhausted, invalid
from common.messages.jobs import Upload
from proto.joblet.v1 import job_pb2
from services.api.quotas import Bound
from services.api.unbroken import to_its_end
from services.api.uploads.entries import END, Tree, padding
from services.api.uploads.registry import Registry, Staged

WRITE_BYTES: Final = 1024 * 1024
"""Collected in memory before a write."""


class Staging:
    """Receives uploads within `bounds`."""

    def __init__(self, registry: Registry, bounds: Uploads) -> None:
        self._registry = registry
        self._bounds = bounds

    async def receive(
        self, owner: str, parts: AsyncIterator[job_pb2.UploadFilesRequest], bound: Bound | None = None
    ) -> Upload:
        """Stage the upload that `parts` are. Nothing is kept when this raises, or is cancelled.

        `bound`: of everything that this owner has staged.
        """
        upload_id, staged = self._registry.begin(owner, bound)
        try:
            async with asyncio.timeout(self._bounds.duration_ms_max / 1000):
                archive = _Archive(self._registry, staged, self._bounds)
                try:
                    await archive.open()
                    async for part in parts:
                        await archive.add(part)
                    await archive.finish()
                finally:
                    archive.close()
        except TimeoutError as cause:
            self._registry.remove(upload_id)
            raise JobletError(
                Reason.DEADLINE,
                f"the upload took longer than {self._bounds.duration_ms_max / 1000:g} s",
                detail="upload less, or over a faster line",
            ) from cause
        except OSError as cause:
            self._registry.remove(upload_id)
            raise exhausted(
                f"cannot stage the upload: {os.strerror(cause.errno or 0)}", "the node's disk may be full"
            ) from cause
        except BaseException:  # cancelled, or refused: either way nothing may stay
            self._registry.remove(upload_id)
            raise
        upload = Upload(id=upload_id, bytes=archive.file_bytes, entries=len(archive.tree))
        self._registry.complete(upload_id, upload)
        return upload


class _Archive:
    """The archive as it grows."""

    def __init__(self, registry: Registry, staged: Staged, bounds: Uploads) -> None:
        self.tree = Tree()
        self.file_bytes = 0
        self._registry = registry
        self._staged = staged
        self._bounds = bounds
        self._descriptor = -1
        self._pending = bytearray()
        self._missing = 0  # bytes of the present file that are still to come
        self._file_bytes = 0  # size of the present file

    async def open(self) -> None:
        await _in_thread(self._open)

    def _open(self) -> None:
        flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC | os.O_NOFOLLOW
        self._descriptor = os.open(self._staged.path, flags, 0o600)

    async def add(self, part: job_pb2.UploadFilesRequest) -> None:
        match part.WhichOneof("part"):
            case "entry":
                self._end_file()
                await self._begin(part.entry)
            case "data":
                if len(part.data) > self._missing:
                    raise invalid("more data than the entry's size_bytes", "send exactly so many bytes")
                self._missing -= len(part.data)
                await self._write(part.data)
            case _:
                raise invalid("neither entry nor data", "set one of both")

    async def finish(self) -> None:
        self._end_file()
        if not self.tree:
            raise invalid("the upload is empty", "send at least one entry")
        await self._write(END)
        await self._flush()

    def close(self) -> None:
        if self._descriptor >= 0:
            os.close(self._descriptor)

    async def _begin(self, entry: job_pb2.UploadEntry) -> None:
        header = self.tree.add(entry)
        if len(self.tree) > self._bounds.entries_max:
            raise invalid(f"more than {self._bounds.entries_max} entries", "pack the files into an archive first")
        self.file_bytes += entry.size_bytes
        if self.file_bytes > self._bounds.bytes_max:
            raise exhausted(f"the upload has more than {self._bounds.bytes_max} bytes", "upload less")
        self._missing = self._file_bytes = entry.size_bytes
        await self._write(header)

    def _end_file(self) -> None:
        if self._missing:
            raise invalid(f"{self._missing} bytes of the file before are missing", "send exactly size_bytes")
        self._pending += padding(self._file_bytes)
        self._file_bytes = 0

    async def _write(self, data: bytes) -> None:
        self._pending += data
        if len(self._pending) >= WRITE_BYTES:
            await self._flush()

    async def _flush(self) -> None:
        pending, self._pending = self._pending, bytearray()
        self._registry.grow(self._staged, len(pending))
        await _in_thread(_write_all, self._descriptor, pending)


async def _in_thread(work: Callable[..., None], *arguments: object) -> None:
    """Work on the file, which is over when this returns or raises.

    Else the descriptor of who is cancelled would be closed under the thread, which would go on in whatever file has the
    number next; and a file made late would stay.
    """
    await to_its_end(asyncio.to_thread(work, *arguments))


def _write_all(descriptor: int, data: bytearray) -> None:
    with memoryview(data) as view:
        done = 0
        while done < len(view):
            done += os.write(descriptor, view[done:])
