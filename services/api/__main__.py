"""The api process: `joblet-api` or `python -m services.api`. Built here and only here.

Order: forbid TLS 1.2 → import everything → begin the keeper, as root → read certificates, check them → bind sockets →
drop privileges → serve, follow the keeper → prove that TLS 1.2 is refused → READY=1. SIGHUP makes the keeper look.
"""

import os

# grpcio has no setting for the lowest TLS version. Its TLS library reads this list once, when grpc is imported, so it
# must be set before any import below. It names the cipher suites for TLS 1.2 and older: one that needs a pre-shared
# key. There is none, so such a handshake cannot succeed; the suites of TLS 1.3 are not touched by it. Always set, also
# over what the caller's environment says. docs/adr/0009-tls13-in-grpcio.md has the measurements.
os.environ["GRPC_SSL_CIPHER_SUITES"] = "ECDHE-PSK-CHACHA20-POLY1305"
# Handshakes that fail (no certificate, a wrong authority, expired, TLS 1.2) never reach our code: grpc alone can log
# them, and does so on stderr at this level.
os.environ.setdefault("GRPC_VERBOSITY", "INFO")

import asyncio  # after the line above, all of these
import signal
from functools import partial

import structlog

from common.messages.topics import Service
from common.runtime import Startup, run_service
from common.tls import server_material
from services.api.keeper import Keeper
from services.api.process import Api, remove_stale_replies
from services.api.selftest import require_tls13_only

log = structlog.get_logger(__name__)

_EVERYWHERE = {"0.0.0.0": "127.0.0.1", "": "127.0.0.1", "::": "::1"}  # noqa: S104  # compared, not bound


async def serve(keeper: Keeper, startup: Startup) -> None:
    """Run the service until it is asked to stop."""
    settings = startup.settings
    material = server_material(settings, startup.layout)
    remove_stale_replies(startup.layout.run)
    api = Api(settings, startup.layout, startup.transport, material, keeper)
    asyncio.get_running_loop().add_signal_handler(signal.SIGHUP, api.rotation.look_now)
    startup.drop_privileges()
    await api.start()
    stopped = asyncio.create_task(startup.stopped())
    failed = asyncio.create_task(api.failed())
    try:
        address = settings.server.address
        log.info("offering TLS 1.2 to this service: gRPC must refuse it, and says so")
        await require_tls13_only(_EVERYWHERE.get(address, address), api.port)
        log.info("serving", address=address, port=api.port)
        startup.ready()
        done, _ = await asyncio.wait({stopped, failed}, return_when=asyncio.FIRST_COMPLETED)
        if failed in done:
            failed.result()
    finally:
        stopped.cancel()
        failed.cancel()
        await api.stop()


def main() -> None:
    """Entry point."""
    keeper = Keeper()
    run_service(Service.API, partial(serve, keeper), before_drop=keeper.start)


if __name__ == "__main__":
    main()
