"""The executor with its real ports: who gets what, and in which order it is let go.

Here: building, for whoever runs an executor: the service (`__main__.py`) and the library (package `worker`). Not here:
what is done with it, and anything that is the process's own: signals, privileges, limits, the transport.
"""

import asyncio
import contextlib
import dataclasses
import functools
import time
from collections.abc import AsyncIterator, Callable, Coroutine
from pathlib import Path
from typing import Any, Final

from common.bus.events import Publisher
from common.bus.transport import Transport
from common.config.layout import Layout
from common.config.settings import Settings
from services.executor.adapters import KernelLaunches, KernelMonitors, KernelTraces
from services.executor.attachments import KernelAttachments
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
from services.executor.volumes import NoVolumes, VolumesOfJobs

BOOT_ID: Final = Path("/proc/sys/kernel/random/boot_id")  # random(4)
SWEEP_S: Final = 5.0
"""Between two tries at groups that could not be removed when their job ended."""


@dataclasses.dataclass(frozen=True, kw_only=True, slots=True)
class Wired:
    """An executor that has not started, what it leaves on the host (`traces`), and what must run beside it."""

    executor: Executor
    traces: KernelTraces
    launches: KernelLaunches
    neighbours: tuple[Callable[[], Coroutine[Any, Any, None]], ...]

    async def start(self) -> list[asyncio.Task[None]]:
        """Take up old jobs, then serve. The tasks: none ends by itself but with an error; the caller cancels them."""
        await self.executor.start()
        self.launches.spares.refill()
        return [asyncio.create_task(run()) for run in (self.executor.run, *self.neighbours)]


@contextlib.asynccontextmanager
async def wired(
    settings: Settings, layout: Layout, transport: Transport, *, has_volumes: bool = True
) -> AsyncIterator[Wired]:
    """The executor of this host. Raises JobletError when the host cannot; running jobs outlive the context.

    `has_volumes`: there is a service that keeps volumes, on `transport`.
    """
    async with contextlib.AsyncExitStack() as stack:
        publisher = Publisher(transport)  # first: it holds the lock that keeps a second executor away from the records
        stack.callback(publisher.close)
        volumes = VolumesOfJobs(transport) if has_volumes else NoVolumes()
        if isinstance(volumes, VolumesOfJobs):
            stack.callback(volumes.close)
        facts = probe_host(settings)
        driver = select_driver(facts, settings)
        stack.callback(driver.release)
        networks = open_networks(settings, facts)
        stack.push_async_callback(networks.close)
        store = JobStore(layout.state / "jobs.db", now_ns=time.time_ns())
        stack.callback(store.close)
        metrics = Metrics(publisher, transport, persists=settings.persist.enabled)
        cleanup = Cleanup(driver, layout)
        monitors = KernelMonitors(layout)
        sampler = Sampler(
            driver,
            metrics.emit,
            interval_ms=settings.joblet.jobs.metrics_interval_ms,
            counters=networks.counters,
        )
        seccomp = compile_filter()
        launcher = LauncherProcess(seccomp)
        owners = Owners(store, uid_first=settings.joblet.jobs.uid_first)
        traces = KernelTraces(cleanup, networks, volumes)
        identities = owners.identity_of if facts.root else own_identity
        launches = KernelLaunches(
            launcher=launcher,
            driver=driver,
            identities=identities,
            networks=networks,
            rootfs=Rootfs(settings.joblet.jobs),
            cleans=traces,
            volumes=volumes,
            rootless=not facts.root,
            settings=settings,
            layout=layout,
        )
        ports = Ports(
            launches=launches,
            monitors=monitors,
            cleans=traces,
            samples=sampler,
            volumes=volumes,
            attachments=KernelAttachments(launcher, layout),
            identities=identities,
            unsupported=driver.unsupported,
            refused_network=networks.unsupported,
            node=node_facts(settings, Parts(facts, driver, seccomp, "", networks.capabilities())),
            boot_id=BOOT_ID.read_text().strip(),
        )
        executor = Executor(
            settings=settings, layout=layout, transport=transport, store=store, publisher=publisher, ports=ports
        )
        stack.push_async_callback(executor.close)
        stack.push_async_callback(launcher.close)
        await launcher.start()
        stack.push_async_callback(launches.spares.close)
        stack.callback(monitors.close)
        yield Wired(
            executor=executor,
            traces=traces,
            launches=launches,
            neighbours=(
                sampler.run,
                functools.partial(_sweep, traces),
                *([volumes.run] if isinstance(volumes, VolumesOfJobs) else []),
            ),
        )


def open_networks(settings: Settings, facts: HostFacts) -> Networks:
    """The networks that jobs can have here."""
    return KernelNetworks.open(settings) if facts.root else RootlessNetworks()


async def _sweep(traces: KernelTraces) -> None:
    while True:
        await asyncio.sleep(SWEEP_S)
        await traces.retry()
