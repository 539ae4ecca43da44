"""The connection to a node: gRPC over mutual TLS.

Here: credentials and channel arguments, with the reason of each. Not here: calls (`session.py`).

TLS 1.3 only: grpcio has no setting for it. `require_tls13` leaves TLS 1.2 without a usable cipher, which works only
when it runs before the first `import grpc` of the process; the servers refuse 1.2 in any case.
"""

import os
from typing import TYPE_CHECKING, Final

from cli.client.contexts import Context

if TYPE_CHECKING:
    import grpc

RECEIVE_BYTES_MAX: Final = 16 * 2**20
SEND_BYTES_MAX: Final = 4 * 2**20
KEEPALIVE_MS: Final = 600_000
KEEPALIVE_TIMEOUT_MS: Final = 20_000

CHANNEL_ARGUMENTS: Final = (
    ("grpc.max_receive_message_length", RECEIVE_BYTES_MAX),
    ("grpc.max_send_message_length", SEND_BYTES_MAX),
    # A follower of a silent job must learn some day that its node is gone; more often than this and servers object.
    ("grpc.keepalive_time_ms", KEEPALIVE_MS),
    ("grpc.keepalive_timeout_ms", KEEPALIVE_TIMEOUT_MS),
    # The one before is for a network that swallows bytes (TCP_USER_TIMEOUT), this for a node that reads none.
    ("grpc.http2.ping_timeout_ms", KEEPALIVE_TIMEOUT_MS),
    # A node that restarts is back within a second or two: gRPC's own pause between attempts must not outlast ours.
    ("grpc.initial_reconnect_backoff_ms", 100),
    # This one is no pause but how long an attempt may take: TCP and TLS need three round trips, and a busy node's time.
    ("grpc.min_reconnect_backoff_ms", 5000),
    ("grpc.max_reconnect_backoff_ms", 1000),
    # Nodes are reached directly; a proxy for the web has no business between.
    ("grpc.enable_http_proxy", 0),
)

_NO_TLS12: Final = "ECDHE-PSK-CHACHA20-POLY1305"  # a TLS 1.2 suite that needs a pre-shared key, which nobody has


def prepare_environment() -> None:
    """Call before the first `import grpc`: TLS 1.3 only, and no log lines of gRPC's core on stderr."""
    os.environ["GRPC_SSL_CIPHER_SUITES"] = _NO_TLS12
    os.environ.setdefault("GRPC_VERBOSITY", "NONE")


def open_channel(context: Context) -> "grpc.Channel":
    """A channel to `context`'s node. Connects lazily; the caller closes it."""
    import grpc  # noqa: PLC0415  # 0.1 s that --help and completion need not pay

    credentials = grpc.ssl_channel_credentials(context.ca, context.key, context.cert)
    return grpc.secure_channel(context.address, credentials, options=CHANNEL_ARGUMENTS)
