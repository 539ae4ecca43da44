"""Export and import of a volume as a tar stream: the volume is held and mounted for it, somebody else moves the bytes.

Whose files they are: those of the owner's jobs on the host, remembered from the first time that one of them had a
volume. Before that an import is refused. An export is not: the volume is empty then, and who reads it is nobody.
"""

from pathlib import Path
from typing import Final

from common.errors import JobletError, Reason, invalid, precondition
from common.messages.topics import STREAM_FILE
from common.messages.volumes import Direction, OpenVolumeStream, VolumeStreamClosed
from services.volumes.disk import Disk
from services.volumes.events import Work, WorkKind
from services.volumes.ports import Ids, Streams
from services.volumes.records import Records
from services.volumes.works import Works

NOBODY: Final = Ids(65534, 65534)


class Transfers:
    """Opens streams. `own`: whose all files are, where everything belongs to one user; else None."""

    def __init__(
        self,
        records: Records,
        disk: Disk,
        works: Works,
        streams: Streams,
        *,
        run_directory: Path,
        own: Ids | None,
    ) -> None:
        self._records = records
        self._disk = disk
        self._works = works
        self._streams = streams
        self._run_directory = run_directory
        self._own = own

    async def stream(self, request: OpenVolumeStream) -> VolumeStreamClosed:
        """Serve one stream to its end."""
        if not STREAM_FILE.fullmatch(request.file):
            raise invalid(f"malformed name of a stream socket {request.file[:64]!r}", "api makes these names")
        if request.direction is Direction.IMPORT and request.snapshot:
            raise invalid("a snapshot does not change", "restore it, or import into the volume")
        owner = self._records.get(request.volume).record.owner
        ids = self._own or self._records.ids_of(owner)
        if ids is None and request.direction is Direction.IMPORT:
            raise precondition(
                f"no job of {owner} has used a volume yet, so it is not known whose the files are to be",
                "run one with the volume first, such as: rnx run --volume NAME true",
            )
        if request.snapshot:
            return await self._show(request, ids)
        return await self._move(request, ids)

    async def _move(self, request: OpenVolumeStream, ids: Ids | None) -> VolumeStreamClosed:
        kind = WorkKind.EXPORT if request.direction is Direction.EXPORT else WorkKind.IMPORT
        async with self._works.beside(request.volume, Work(kind=kind)) as volume:
            async with self._disk.locks.of(request.volume):
                place = await self._disk.mount(volume, ids)
            return await self._run(request, place.source, ids)

    async def _show(self, request: OpenVolumeStream, ids: Ids | None) -> VolumeStreamClosed:
        snapshot = self._records.snapshot(request.volume, request.snapshot).id
        async with self._works.beside(request.volume, Work(kind=WorkKind.SHOW, snapshot=snapshot)) as volume:
            self._records.snapshot(request.volume, request.snapshot)  # unless it was removed meanwhile
            async with self._disk.locks.of(request.volume):
                place = await self._disk.open_snapshot(volume, snapshot)
            closed = await self._run(request, place.source, ids)
            async with self._disk.locks.of(request.volume):
                await self._disk.close_snapshot(volume, snapshot)
        return closed

    async def _run(self, request: OpenVolumeStream, source: str, ids: Ids | None) -> VolumeStreamClosed:
        socket = str(self._run_directory / request.file)
        try:
            entries, moved_bytes = await self._streams.run(source, request.direction, socket, ids or NOBODY)
        except OSError as cause:
            raise JobletError(Reason.INTERNAL, f"the {request.direction} failed: {cause.strerror or cause}") from cause
        return VolumeStreamClosed(entries=entries, bytes=moved_bytes)
