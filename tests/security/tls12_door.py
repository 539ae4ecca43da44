"""A program of test_matrix.py: an api in a process whose gRPC takes TLS 1.2, and what each method answers over it.

Which versions gRPC takes is decided when it is imported, so that this needs a process of its own. Prints one line for
each method: its name and its grpc-status; before them the version of TLS.
"""

import asyncio
import os
import ssl
import sys
from pathlib import Path

os.environ["GRPC_SSL_CIPHER_SUITES"] = "HIGH"  # before grpc is imported below

from tests.api_node import running_node
from tests.http2 import client_context, connected
from tests.security.front_door import REQUESTS

JOB = "6fa459ea-ee8a-4ca4-894e-db77e160355e"


async def offer(directory: Path) -> None:
    """Ask for everything, one after the other."""
    async with running_node(directory / "node") as node:
        identity = node.authority.client("ann", "admin")
        context = client_context(node.authority, identity, directory, ssl.TLSVersion.TLSv1_2)
        async with connected(node.api.port, context) as connection:
            lines = [connection.tls_version]
            for method, request in REQUESTS.items():
                stream = connection.request(method, request(JOB).SerializeToString())
                lines.append(f"{method} {await connection.answered(stream)}")
    sys.stdout.write("\n".join(lines) + "\n")


if __name__ == "__main__":
    asyncio.run(offer(Path(sys.argv[1])))
