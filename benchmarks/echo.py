"""The floor under the live latency: a bare pipe, and a gRPC server over the same TLS that passes on what it reads.

Belongs here: that server and its client, with nothing of joblet between. Does not belong here: what is compared.
"""

import os
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from cli.client.channel import prepare_environment

prepare_environment()

import grpc  # noqa: E402  # TLS 1.3 only holds when the environment was prepared before

SERVICE = "bench.Echo"
METHOD = "Lines"
READ_BYTES = 65536


def _lines_of(script: str) -> Callable[[bytes, grpc.ServicerContext], Iterator[bytes]]:
    def lines(request: bytes, context: grpc.ServicerContext) -> Iterator[bytes]:
        del request, context
        with subprocess.Popen([sys.executable, "-I", "-S", "-c", script], stdout=subprocess.PIPE) as writer:
            assert writer.stdout is not None
            while data := os.read(writer.stdout.fileno(), READ_BYTES):
                yield data

    return lines


def echo_latencies_ms(certs: Path, script: str) -> list[float]:
    """Milliseconds from each write of `script` (it writes the time in nanoseconds) until the client had it."""
    ca = (certs / "ca.crt").read_bytes()
    credentials = grpc.ssl_server_credentials(
        [((certs / "server.key").read_bytes(), (certs / "server.crt").read_bytes())], ca, require_client_auth=True
    )
    server = grpc.server(ThreadPoolExecutor(max_workers=2))
    handler = grpc.unary_stream_rpc_method_handler(_lines_of(script))
    server.add_generic_rpc_handlers((grpc.method_handlers_generic_handler(SERVICE, {METHOD: handler}),))
    port = server.add_secure_port("127.0.0.1:0", credentials)
    server.start()
    own = grpc.ssl_channel_credentials(ca, (certs / "default.key").read_bytes(), (certs / "default.crt").read_bytes())
    latencies = []
    try:
        with grpc.secure_channel(f"127.0.0.1:{port}", own) as channel:
            for data in channel.unary_stream(f"/{SERVICE}/{METHOD}", None, None)(b""):
                now = time.time_ns()
                latencies += [(now - int(line)) / 1e6 for line in data.split()]
    finally:
        server.stop(None).wait()
    return latencies
