"""The executor process: probes this host, or serves with the real ports (`wiring.py`). Run as `joblet-executor`."""

import asyncio
import resource

import msgspec

from common.config.settings import Settings
from common.errors import JobletError
from common.messages.topics import Service
from common.runtime import Startup, run_service
from services.executor.cgroups.none import NoneDriver
from services.executor.cgroups.select import select_driver
from services.executor.host import probe_host
from services.executor.probes.node import Parts, node_facts
from services.executor.seccomp.compile import compile_filter
from services.executor.wiring import open_networks, wired


def main() -> None:
    """Run the process to its end."""
    run_service(Service.EXECUTOR, serve, probe=probe)


def probe(settings: Settings) -> str:
    """What `--probe` prints: this host in facts, as one JSON object (NodeFacts). Raises JobletError."""
    facts = probe_host(settings)
    try:
        seccomp, seccomp_failure = compile_filter(), ""
    except JobletError as error:
        seccomp, seccomp_failure = b"", str(error)
    try:
        driver = select_driver(facts, settings)
    except JobletError as error:
        driver = NoneDriver(str(error))
    try:
        parts = Parts(facts, driver, seccomp, seccomp_failure, open_networks(settings, facts).capabilities())
        return msgspec.json.encode(node_facts(settings, parts)).decode()
    finally:
        driver.release()


async def serve(startup: Startup) -> None:
    """Serve until asked to stop. Raises JobletError when this host cannot."""
    _raise_descriptor_limit()
    async with wired(startup.settings, startup.layout, startup.transport) as parts:
        working = await parts.start()
        stopping = asyncio.create_task(startup.stopped())
        startup.ready()
        done, _ = await asyncio.wait([stopping, *working], return_when=asyncio.FIRST_COMPLETED)
        for task in (stopping, *working):
            if task not in done:
                task.cancel()
        await asyncio.gather(stopping, *working, return_exceptions=True)
        for task in done:
            task.result()


def _raise_descriptor_limit() -> None:
    """A running job costs two descriptors, and the default soft limit of 1024 is for programs that use select(2)."""
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))


if __name__ == "__main__":
    main()
