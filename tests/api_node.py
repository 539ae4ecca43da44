"""A whole api for tests: the real gRPC server on loopback, over the memory transport, with fake services.

Belongs here: putting them together, and clients with certificates. Does not belong here: the fakes themselves
(`api_executor.py`, `api_persist.py`, `api_volumes.py`), and expectations.
"""

import asyncio
import os
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

os.environ.setdefault("GRPC_SSL_CIPHER_SUITES", "ECDHE-PSK-CHACHA20-POLY1305")

import grpc
from grpc import aio

from common.bus.memory import Memory
from common.config.layout import Layout, layout_of
from common.config.settings import (
    Grpc,
    Joblet,
    Jobs,
    Journal,
    LimitPolicy,
    Quotas,
    Security,
    Server,
    Settings,
    Uploads,
)
from common.tls import ServerMaterial
from proto.joblet.v1 import (
    job_pb2_grpc,
    node_pb2_grpc,
    persist_pb2_grpc,
    volume_pb2_grpc,
    worker_pb2_grpc,
)
from services.api.process import Api
from tests.api_executor import FakeExecutor
from tests.api_persist import FakePersist
from tests.api_volumes import FakeVolumes
from tests.certificates import Authority, Identity


class Client:
    """Stubs over one channel of one identity."""

    def __init__(self, channel: aio.Channel) -> None:
        self.channel = channel
        self.jobs: Any = job_pb2_grpc.JobServiceStub(channel)
        self.node: Any = node_pb2_grpc.NodeServiceStub(channel)
        self.persist: Any = persist_pb2_grpc.PersistServiceStub(channel)
        self.volumes: Any = volume_pb2_grpc.VolumeServiceStub(channel)
        self.worker: Any = worker_pb2_grpc.WorkerServiceStub(channel)


class Node:
    """Everything together. `client` makes callers; `api` is what is tested."""

    def __init__(
        self,
        *,
        api: Api,
        executor: FakeExecutor,
        persist: FakePersist,
        volumes: FakeVolumes,
        authority: Authority,
        layout: Layout,
    ) -> None:
        self.api = api
        self.executor = executor
        self.persist = persist
        self.volumes = volumes
        self.authority = authority
        self.layout = layout
        self._channels: list[aio.Channel] = []

    def client(self, name: str, *roles: str) -> Client:
        """A caller with an ordinary certificate."""
        return self.caller(self.authority.client(name, *roles))

    def caller(self, identity: Identity | None, ca: bytes | None = None) -> Client:
        """A caller with this certificate, or none."""
        credentials = grpc.ssl_channel_credentials(
            ca or self.authority.pem,
            private_key=identity.key if identity else None,
            certificate_chain=identity.cert if identity else None,
        )
        options = (
            ("grpc.ssl_target_name_override", "localhost"),
            ("grpc.use_local_subchannel_pool", 1),
            ("grpc.enable_http_proxy", 0),
            ("grpc.max_receive_message_length", 64 * 2**20),
        )
        channel = aio.secure_channel(f"127.0.0.1:{self.api.port}", credentials, options=options)
        self._channels.append(channel)
        return Client(channel)

    async def close(self) -> None:
        """Close the channels."""
        for channel in self._channels:
            await channel.close(None)


@asynccontextmanager
async def running_node(
    base: Path,
    *,
    limits: Grpc | None = None,
    uploads: Uploads | None = None,
    job_limits: LimitPolicy | None = None,
    job_defaults: Jobs | None = None,
    journal: Journal | None = None,
    quotas: Quotas | None = None,
    security: Security | None = None,
    silence_s: float | None = None,
) -> AsyncIterator[Node]:
    """A node below `base` that ends with the block."""
    settings = Settings(
        server=Server(address="127.0.0.1", port=0),
        security=security or Security(),
        joblet=Joblet(
            base_dir=str(base),
            grpc=limits or Grpc(),
            uploads=uploads or Uploads(),
            limits=job_limits or LimitPolicy(),
            jobs=job_defaults or Jobs(),
            journal=journal or Journal(),
            quotas=quotas or Quotas(),
        ),
    )
    layout = layout_of(settings)
    for directory in (layout.run, layout.streams, layout.uploads, layout.audit):
        directory.mkdir(parents=True, exist_ok=True)
    authority = Authority()
    server_identity = authority.server()
    transport = Memory()
    persist = FakePersist()
    persist_server = aio.server()
    persist_pb2_grpc.add_PersistServiceServicer_to_server(persist, persist_server)
    persist_server.add_insecure_port(f"unix:{layout.persist_grpc}")
    await persist_server.start()
    executor = FakeExecutor(transport, persist)
    volumes = FakeVolumes(transport, layout.streams)
    executor.volumes = volumes
    answering = [asyncio.create_task(service.run()) for service in (executor, volumes)]
    material = ServerMaterial(cert=server_identity.cert, key=server_identity.key, ca=authority.pem)
    api = Api(settings, layout, transport, material)
    if silence_s is not None:
        api.feeds._silence_s = silence_s  # the one number of the process that is no setting
    await api.start()
    node = Node(api=api, executor=executor, persist=persist, volumes=volumes, authority=authority, layout=layout)
    try:
        yield node
    finally:
        await node.close()
        await api.stop()
        for task in answering:
            task.cancel()
        await asyncio.gather(*answering, return_exceptions=True)
        await executor.close()
        await volumes.close()
        await persist_server.stop(0)
