"""The volumes service. In this release it keeps no volumes: it refuses every command."""

import asyncio

import structlog

from common.bus.requests import Responder
from common.errors import JobletError, Reason
from common.messages.envelope import Body
from common.messages.topics import API_REPLIES, EXECUTOR_REPLIES, VOLUME_COMMANDS, VOLUMES_COMMANDS, Service
from common.runtime import Startup, run_service

log = structlog.get_logger(__name__)


async def serve(startup: Startup) -> None:
    """Serve until the process is asked to end."""
    responder = Responder(
        startup.transport,
        VOLUMES_COMMANDS,
        API_REPLIES,
        dict.fromkeys(VOLUME_COMMANDS, _refuse),
        also=(EXECUTOR_REPLIES,),
    )
    answering = asyncio.create_task(responder.run())
    stopping = asyncio.create_task(startup.stopped())
    startup.ready()
    try:
        done, _ = await asyncio.wait({answering, stopping}, return_when=asyncio.FIRST_COMPLETED)
        for task in done:
            task.result()  # answering ends only by failing: then so does the service, and its supervisor begins anew
    finally:
        answering.cancel()
        stopping.cancel()
        await asyncio.gather(answering, stopping, return_exceptions=True)
        await responder.close()
        log.info("messages refused", **responder.rejected)


async def _refuse(_: Body) -> Body:
    raise JobletError(Reason.UNIMPLEMENTED, "volumes are not available in this release")


def main() -> None:
    """Run `joblet-volumes`."""
    run_service(Service.VOLUMES, serve)


if __name__ == "__main__":
    main()
