"""The executor process: builds every part with its real ports, and serves. Run as `joblet-executor`."""

import asyncio
import contextlib
import resource
import time
from collections.abc import AsyncIterator
from typing import Final

import msgspec
import structlog

from common.bus.events import Publisher
from common.config.settings import Settings
from common.errors import JobletError
from common.messages.topics import Service
from common.runtime import Startup, run_service
from services.executor.adapters import KernelLaunches, KernelMonitors, KernelTraces
from services.executor.cgroups.none import NoneDriver
from services.executor.cgroups.select import select_driver
from services.executor.cleanup import Cleanup
from services.executor.host import HostFacts, probe_host
from services.executor.job_store import JobStore
from services.executor.launching import LauncherProcess
from services.executor.network.kernel import KernelNetworks
from services.executor.network.networks import Networks
from services.executor.owners import Owners
from services.executor.probes.node import Parts, node_facts
from services.executor.rootfs import Rootfs
from services.executor.rootless import RootlessNetworks, own_identity
from services.executor.sampler import Sampler
from services.executor.seccomp.compile import compile_filter
from services.executor.service import Executor, Metrics, Ports

log = structlog.get_logger(__name__)

SWEEP_S: Final = 5.0
"""Between two tries at groups that could not be removed when their job ended."""


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
        parts = Parts(facts, driver, seccomp, seccomp_failure, _networks(settings, facts).capabilities())
        return msgspec.json.encode(node_facts(settings, parts)).decode()
    finally:
        driver.release()


async def serve(startup: Startup) -> None:
    """Serve until asked to stop. Raises JobletError when this host cannot."""
    _raise_descriptor_limit()
    async with _executor(startup) as (executor, tasks):
        stopping = asyncio.create_task(startup.stopped())
        working = [asyncio.create_task(executor.run()), *tasks]
        startup.ready()
        done, _ = await asyncio.wait([stopping, *working], return_when=asyncio.FIRST_COMPLETED)
        for task in (stopping, *working):
            if task not in done:
                task.cancel()
        await asyncio.gather(stopping, *working, return_exceptions=True)
        for task in done:
            task.result()


@contextlib.asynccontextmanager
async def _executor(startup: Startup) -> AsyncIterator[tuple[Executor, list[asyncio.Task[None]]]]:
    """The executor, started, and the tasks of its neighbours."""
    settings, layout, transport = startup.settings, startup.layout, startup.transport
    publisher = Publisher(transport)  # first: it holds the lock that keeps a second executor away from the records
    facts = probe_host(settings)
    driver = select_driver(facts, settings)
    store = JobStore(layout.state / "jobs.db", now_ns=time.time_ns())
    metrics = Metrics(publisher, transport, persists=settings.persist.enabled)
    cleanup = Cleanup(driver, layout)
    monitors = KernelMonitors(layout)
    networks = _networks(settings, facts)
    sampler = Sampler(
        driver,
        metrics.emit,
        interval_ms=settings.joblet.jobs.metrics_interval_ms,
        counters=networks.counters,
    )
    seccomp = compile_filter()
    launcher = LauncherProcess(seccomp)
    await launcher.start()
    owners = Owners(store, uid_first=settings.joblet.jobs.uid_first)
    rootfs = Rootfs(settings.joblet.jobs)
    traces = KernelTraces(cleanup, networks)
    launches = KernelLaunches(
        launcher=launcher,
        driver=driver,
        identities=owners.identity_of if facts.root else own_identity,
        networks=networks,
        rootfs=rootfs,
        cleans=traces,
        rootless=not facts.root,
        settings=settings,
        layout=layout,
    )
    ports = Ports(
        launches=launches,
        monitors=monitors,
        cleans=traces,
        samples=sampler,
        unsupported=driver.unsupported,
        refused_network=networks.unsupported,
        node=node_facts(settings, Parts(facts, driver, seccomp, "", networks.capabilities())),
    )
    executor = Executor(
        settings=settings, layout=layout, transport=transport, store=store, publisher=publisher, ports=ports
    )
    try:
        await executor.start()
        launches.spares.refill()
        yield executor, [asyncio.create_task(sampler.run()), asyncio.create_task(_sweep(cleanup))]
    finally:
        monitors.close()
        await launches.spares.close()
        await launcher.close()
        await executor.close()
        await networks.close()
        driver.release()


async def _sweep(cleanup: Cleanup) -> None:
    while True:
        await asyncio.sleep(SWEEP_S)
        if cleanup.unfinished:
            await cleanup.retry()


def _networks(settings: Settings, facts: HostFacts) -> Networks:
    return KernelNetworks.open(settings) if facts.root else RootlessNetworks()


def _raise_descriptor_limit() -> None:
    """A running job costs two descriptors, and the default soft limit of 1024 is for programs that use select(2)."""
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))


if __name__ == "__main__":
    main()
