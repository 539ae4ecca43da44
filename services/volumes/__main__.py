"""The volumes service. In this release it keeps no volumes: it holds its place on the bus and refuses every message.

Its endpoint carries no message kind yet, so whatever arrives is counted as refused, told in the log, and harms nobody;
callers are told UNIMPLEMENTED by api, and jobs that name volumes are refused by the executor.
"""

import asyncio

import structlog

from common.bus.requests import Receiver
from common.messages.topics import VOLUMES_COMMANDS, Service
from common.runtime import Startup, run_service

log = structlog.get_logger(__name__)


async def serve(startup: Startup) -> None:
    """Serve until the process is asked to end."""
    receiver = Receiver(startup.transport, VOLUMES_COMMANDS)
    startup.drop_privileges()
    refusing = asyncio.create_task(_refuse(receiver))
    stopping = asyncio.create_task(startup.stopped())
    startup.ready()
    try:
        done, _ = await asyncio.wait({refusing, stopping}, return_when=asyncio.FIRST_COMPLETED)
        for task in done:
            task.result()  # refusing ends only by failing: then so does the service, and its supervisor begins anew
    finally:
        refusing.cancel()
        stopping.cancel()
        await asyncio.gather(refusing, stopping, return_exceptions=True)
        receiver.close()
        log.info("messages refused", **receiver.rejected)


async def _refuse(receiver: Receiver) -> None:
    """Take every message; the receiver itself refuses and counts those that the endpoint does not carry: all."""
    async for message in receiver.messages():
        raise AssertionError(f"{VOLUMES_COMMANDS.file} carries no message, but {type(message.body).__name__} passed")


def main() -> None:
    """Run `joblet-volumes`."""
    run_service(Service.VOLUMES, serve)


if __name__ == "__main__":
    main()
