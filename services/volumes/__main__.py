"""The volumes process: tries what this host can, or serves with the real ports. Run as `joblet-volumes`."""

import asyncio
import os

from common.config.layout import layout_of
from common.config.settings import Settings
from common.messages.topics import Service
from common.runtime import Startup, run_service
from services.volumes.keys import Keys
from services.volumes.ports import Ids
from services.volumes.probing import report
from services.volumes.service import Ports, Volumes
from services.volumes.storage.select import open_storages, possible_here
from services.volumes.streams import ProcessStreams


def main() -> None:
    """Run `joblet-volumes` to its end."""
    run_service(Service.VOLUMES, serve, probe=probe)


def probe(settings: Settings) -> str:
    """What `--probe` prints: the ways to keep volumes, as one JSON array of Capability."""
    return report(possible_here(layout_of(settings)))


async def serve(startup: Startup) -> None:
    """Serve until the process is asked to end. Raises JobletError when this host cannot."""
    settings, layout, users = startup.settings, startup.layout, startup.users
    volumes = Volumes(
        settings=settings,
        layout=layout,
        transport=startup.transport,
        ports=Ports(
            storages=lambda: open_storages(settings, layout),
            keys=Keys(layout.state / "volumes.key"),
            streams=ProcessStreams(peers=frozenset({users.api_uid} if users else ())),
            own=None if os.geteuid() == 0 else Ids(os.geteuid(), os.getegid()),
        ),
    )
    try:
        await volumes.start()
        running = asyncio.create_task(volumes.run())
        stopping = asyncio.create_task(startup.stopped())
        startup.ready()
        done, _ = await asyncio.wait({running, stopping}, return_when=asyncio.FIRST_COMPLETED)
        for task in (running, stopping):
            task.cancel()
        await asyncio.gather(running, stopping, return_exceptions=True)
        for task in done:
            task.result()  # running ends only by failing: then so does the service, and its supervisor begins anew
    finally:
        await volumes.close(tidy=True)


if __name__ == "__main__":
    main()
