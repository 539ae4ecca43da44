"""The persist process: built here and only here. See docs/storage-format.md for what it writes.

Sockets are bound as root; then it becomes its own user, and can read and write nothing but the store. All modules are
imported before that.
"""

import asyncio
import contextlib
import os
import uuid
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Final

import grpc

from common.audit import AuditFile
from common.bus.requests import Receiver
from common.bus.zeromq import IPC_PATH_BYTES_MAX
from common.config.layout import Layout
from common.config.settings import Settings
from common.errors import JobletError, Reason, invalid, precondition
from common.messages.logs import PersistStarted
from common.messages.topics import PERSIST_ACKS, PERSIST_IPC, Service
from common.runtime import Startup, run_service
from proto.joblet.v1.persist_pb2_grpc import add_PersistServiceServicer_to_server
from services.persist.audit_reader import AuditQueries
from services.persist.changes import Changes
from services.persist.disk import HostDisk
from services.persist.ingest import Ingest
from services.persist.keeping import Keeper
from services.persist.machine import Limits
from services.persist.outbox import Outbox
from services.persist.queries import LogQueries
from services.persist.samples import Samples
from services.persist.server import REQUEST_BYTES_MAX, PersistServer
from services.persist.store import Store

READERS: Final = 4
COMPRESSORS: Final = 2
"""More would wait: encoding, which feeds them, is not parallel."""
STOP_GRACE_S: Final = 1.0


async def serve(startup: Startup) -> None:
    """Run until asked to stop."""
    settings, layout = startup.settings, startup.layout
    _check(settings, layout)
    local = settings.persist.storage.local
    receiver = Receiver(startup.transport, PERSIST_IPC)
    outbox = Outbox(startup.transport.push(PERSIST_ACKS))
    limits = Limits(local.flush_bytes, local.flush_ms)
    writing = limits.places + 1  # and one for samples
    with (
        _own_way_to(layout.audit_persist) as audit_directory,
        contextlib.closing(AuditFile(audit_directory, settings.joblet.audit)) as audit,
        ThreadPoolExecutor(COMPRESSORS, "compress") as compressors,
        ThreadPoolExecutor(writing, "write") as writers,
        ThreadPoolExecutor(READERS, "read") as readers,
        ThreadPoolExecutor(1, "keep") as keepers,
    ):
        store = Store(
            logs=layout.logs, metrics=layout.metrics, settings=local, disk=HostDisk(), compressors=compressors
        )
        samples, changes = Samples(store), Changes()
        ingest = Ingest(
            source=receiver,
            answer=outbox.put,
            store=store,
            samples=samples,
            changes=changes,
            limits=limits,
            pool=writers,
        )
        server = grpc.aio.server(
            maximum_concurrent_rpcs=settings.persist.server.max_connections,
            options=[("grpc.max_receive_message_length", REQUEST_BYTES_MAX)],
        )
        queries = LogQueries(store=store, changes=changes, pool=readers)
        keeper = Keeper(
            store=store,
            logs=layout.logs,
            metrics=layout.metrics,
            settings=local.retention,
            audit=audit,
            removed=ingest.deleted,
            pool=keepers,
        )
        store.when_full = keeper.hurry
        servicer = PersistServer(
            store=store,
            samples=samples,
            queries=queries,
            ingest=ingest,
            keeper=keeper,
            pool=readers,
            audit=AuditQueries(audit_directory),
        )
        add_PersistServiceServicer_to_server(servicer, server)
        _bind(server, layout.persist_grpc, None if startup.users is None else startup.users.gid)
        startup.drop_privileges()
        await server.start()
        outbox.put(PersistStarted(instance=uuid.uuid4().hex))
        running = asyncio.create_task(_run(ingest, outbox, keeper))
        stopping = asyncio.create_task(startup.stopped())
        startup.ready()
        await asyncio.wait({running, stopping}, return_when=asyncio.FIRST_COMPLETED)
        for task in (running, stopping):
            task.cancel()
        keeper.stop()
        await server.stop(STOP_GRACE_S)
        await ingest.settle()
        with contextlib.suppress(asyncio.CancelledError):
            await running


async def _run(ingest: Ingest, outbox: Outbox, keeper: Keeper) -> None:
    async with asyncio.TaskGroup() as group:
        group.create_task(ingest.run())
        group.create_task(outbox.run())
        group.create_task(keeper.run())


@contextlib.contextmanager
def _own_way_to(directory: Path) -> Iterator[Path]:
    """The directory by a descriptor: what is above it belongs to api and is closed to persist."""
    descriptor = os.open(directory, os.O_PATH | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC)
    try:
        yield Path(f"/proc/self/fd/{descriptor}")
    finally:
        os.close(descriptor)


def main() -> None:
    """Console script `joblet-persist`."""
    run_service(Service.PERSIST, serve)


def _check(settings: Settings, layout: Layout) -> None:
    if not settings.persist.enabled:
        raise precondition(
            "persist.enabled is false, which this release does not have", "leave it out: output is stored locally"
        )
    kind = settings.persist.storage.type
    if kind != "local":
        raise precondition(
            f"persist.storage.type is {kind!r}, which this release does not have", "set it to local and start again"
        )
    socket = settings.persist.ipc.socket
    if socket and not _is_ours(Path(socket), layout):
        raise precondition(
            f"persist.ipc.socket is {socket!r}, the executor writes to {(layout.run / PERSIST_IPC.file).absolute()}",
            "leave persist.ipc.socket out",
        )


def _is_ours(socket: Path, layout: Layout) -> bool:
    """Whether `socket` names the table's own, however it is spelled: the layout's paths may be relative."""
    return socket.name == PERSIST_IPC.file and socket.parent.exists() and socket.parent.samefile(layout.run)


def _bind(server: grpc.aio.Server, path: Path, gid: int | None) -> None:
    """Bind the query socket: for the group only. The lock of the write socket keeps a second persist out."""
    if len(os.fsencode(path)) > IPC_PATH_BYTES_MAX:
        raise invalid(f"socket path {path} is longer than {IPC_PATH_BYTES_MAX} bytes", "use a shorter base directory")
    umask = os.umask(0o177)
    try:
        server.add_insecure_port(f"unix:{path}")
    except RuntimeError as cause:
        raise JobletError(
            Reason.PRECONDITION, f"cannot bind {path}", detail="is the directory there, and writable?"
        ) from cause
    finally:
        os.umask(umask)
    if gid is not None:
        os.chown(path, -1, gid)
    path.chmod(0o660)


if __name__ == "__main__":
    main()
