"""The content of volumes as tar streams over a session.

Here: the two calls. Not here: files and pipes (`cli/rnx/volume_content.py`). Neither is repeated when the connection
breaks: half a stream is none.
"""

from collections.abc import Callable, Iterable, Iterator
from typing import Final

import grpc

from cli.client.session import Session
from cli.client.volumes import volume_name
from common.errors import JobletError, Reason
from common.identifiers import parse_name
from proto.joblet.v1 import volume_pb2

CHUNK_BYTES: Final = 256 * 1024


def export_volume(session: Session, name: str, *, snapshot: str) -> Iterator[bytes]:
    """The content of a volume or its snapshot. Raises JobletError when what came is not all."""
    request = volume_pb2.ExportVolumeRequest(
        volume=volume_name(name), snapshot=parse_name(snapshot, "snapshot") if snapshot else ""
    )
    with session.translated():
        call = session.volumes.ExportVolume(request, timeout=session.remaining_s())
        try:
            for chunk in call:
                yield chunk.data
        finally:
            session.cancel(call)


def import_volume(session: Session, name: str, pieces: Iterable[bytes]) -> volume_pb2.Volume:
    """Unpack what `pieces` are, each of at most CHUNK_BYTES. What they raise ends the import, and is raised here."""
    outgoing = _Outgoing(volume_name(name), pieces)
    remaining = session.remaining_s()
    with session.translated():
        call = session.volumes.ImportVolume.future(outgoing.requests(), timeout=remaining)
        outgoing.cancel = call.cancel
        try:
            return call.result()
        except grpc.FutureCancelledError as cause:
            raise outgoing.failure or JobletError(Reason.UNAVAILABLE, "the import was canceled") from cause
        except grpc.RpcError:
            if outgoing.failure is not None:
                raise outgoing.failure from None
            raise
        finally:
            session.cancel(call)


class _Outgoing:
    """The requests of one import. gRPC pulls them in a thread of its own, so a failure is kept for the caller."""

    def __init__(self, name: str, pieces: Iterable[bytes]) -> None:
        self._name = name
        self._pieces = pieces
        self.failure: JobletError | None = None
        self.cancel: Callable[[], object] = lambda: None

    def requests(self) -> Iterator[volume_pb2.ImportVolumeRequest]:
        yield volume_pb2.ImportVolumeRequest(volume=self._name)
        try:
            for data in self._pieces:
                yield volume_pb2.ImportVolumeRequest(data=data)
        except JobletError as error:
            self.failure = error
            # Just to end here would look like all of it to the node.
            self.cancel()
