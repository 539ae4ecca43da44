"""`joblet up` and `joblet down`: the four services of one base directory under one supervisor.

Here: the commands, what happens before the services start, and the one line on stdout. Not here: the services' life
(`supervisor.py`), the files of a first start (`firststart.py`), the node's answers (`node.py`).
"""

import asyncio
import contextlib
import os
import select
import signal
import subprocess
import sys
import time
from collections.abc import Coroutine, Iterator
from pathlib import Path
from typing import Any, Final, NamedTuple

import click

from cli.client.contexts import load_context
from cli.client.renewal import advice, has_ended
from cli.joblet.firststart import CLIENT_CONFIG_FILE, LOOPBACK, client_config, first_files, free_port
from cli.joblet.notifications import NotificationSocket
from cli.joblet.printing import OWN_NAME, LogPrinter
from cli.joblet.service import ServiceStarter
from cli.joblet.supervisor import START_ORDER, Supervisor
from cli.joblet.uplock import UpLock, holder
from common.config.layout import Layout, layout_of
from common.config.load import CONFIG_FILE, load_settings
from common.config.settings import DEFAULT_BASE_DIR, Settings
from common.errors import JobletError, Reason, unavailable
from common.prctl import name_process
from common.privileges import default_base_dir, prepare_directories, resolve_users
from common.runtime import Notifier
from common.signals import asked_to_end

LOG_FILE: Final = "joblet.log"
QUESTION_TIMEOUT_S: Final = 90.0
DOWN_TIMEOUT_S: Final = 60.0


def _own_base_dir(context: click.Context, _parameter: click.Parameter, named: Path | None) -> Path | None:
    """Without root there is a default that the configuration does not know; a file that was named goes before it.

    Options that are given are looked at before those that are not: the file's is in `params` already.
    """
    file = context.params.get("config") or context.params.get("file")
    return default_base_dir() if named is None and file is None and os.geteuid() != 0 else named


base_dir_option = click.option(
    "--base-dir",
    type=click.Path(file_okay=False, path_type=Path),
    callback=_own_base_dir,
    help=f"Base directory [default: {DEFAULT_BASE_DIR}; without root: joblet in the user's data directory]",
)


class Plan(NamedTuple):
    """Everything that is known before a service starts."""

    settings: Settings
    layout: Layout
    port: int
    config: Path | None
    client_config: Path | None


@click.command(epilog="Example: joblet up --base-dir /tmp/node --port 0")
@base_dir_option
@click.option("--port", type=click.IntRange(0, 65_535), help="Port of the gRPC API; 0 picks a free one.")
@click.option("--config", type=click.Path(dir_okay=False, path_type=Path), help="Configuration file.")
@click.option("--detach", is_flag=True, help="Go on in the background when all services are ready.")
@click.option("--stop-jobs", is_flag=True, help="At the end, stop the running jobs too.")
def up(base_dir: Path | None, port: int | None, config: Path | None, *, detach: bool, stop_jobs: bool) -> None:
    """Start volumes, persist, executor and api, and keep them running.

    Prints one line on stdout when all are healthy; everything else goes to stderr. Ctrl-C or SIGTERM stops the
    services; running jobs go on and are taken up again by the next `joblet up`. Without root the node is rootless:
    docs/rootless.md.
    """
    os.umask(0o077)
    settings = load_settings(config, base_dir=base_dir, port=port)
    if detach:
        _detach(Path(settings.joblet.base_dir), stop_jobs=stop_jobs)
        return
    layout = layout_of(settings)
    prepare_directories(layout, resolve_users(settings.joblet.users, layout) if os.geteuid() == 0 else None)
    manager = Notifier(os.environ.pop("NOTIFY_SOCKET", None))  # under systemd; the services get a socket of ours
    lock = UpLock(layout.base)
    try:
        name_process("joblet")
        with LogPrinter(sys.stderr.fileno(), tuple(START_ORDER)) as printer:
            plan = _plan(settings, layout, config, printer)
            asyncio.run(_run(plan, printer, manager, stop_jobs=stop_jobs))
    finally:
        lock.close()


@click.command(epilog="Example: joblet down --base-dir /tmp/node")
@base_dir_option
def down(base_dir: Path | None) -> None:
    """Stop the `joblet up` of a base directory. Running jobs go on, unless it was started with --stop-jobs."""
    base = base_dir or default_base_dir()
    pid = holder(base)
    if not pid:
        raise unavailable(f"no joblet up runs on {base}", "nothing to do")
    with _process(pid) as process:
        signal.pidfd_send_signal(process, signal.SIGTERM)
        if not select.select([process], [], [], DOWN_TIMEOUT_S)[0]:
            raise JobletError(
                Reason.DEADLINE, f"joblet up (pid {pid}) did not end within {DOWN_TIMEOUT_S:g} s", detail="see its log"
            )


def _plan(settings: Settings, layout: Layout, config: Path | None, printer: LogPrinter) -> Plan:
    for sentence in first_files(settings, layout, own_config=config is not None):
        printer.line(sentence)
    port = settings.server.port or free_port(settings.server.address)
    file = config or layout.base / CONFIG_FILE
    return Plan(settings, layout, port, file, client_config(settings, layout, port))


async def _run(plan: Plan, printer: LogPrinter, manager: Notifier, *, stop_jobs: bool) -> None:
    stop = asyncio.Event()
    with asked_to_end(stop.set):
        await _supervise(plan, printer, manager, stop, stop_jobs=stop_jobs)


async def _supervise(
    plan: Plan, printer: LogPrinter, manager: Notifier, stop: asyncio.Event, *, stop_jobs: bool
) -> None:
    arguments = ("--config", str(plan.config), "--base-dir", str(plan.layout.base), "--port", str(plan.port))
    notifications = NotificationSocket(plan.layout.run)
    supervisor = Supervisor(ServiceStarter(arguments, notifications.address), printer.line)
    notifications.listen(supervisor.heard)
    try:
        if await _unless_stopped(_bring_up(supervisor, plan, printer), stop):
            manager.send("READY=1")
            await stop.wait()
        manager.send("STOPPING=1")
        printer.line("stopping")
        if stop_jobs:
            printer.line(await _ask("stop-jobs", plan, printer))
    finally:
        await supervisor.stop()
        notifications.close()


async def _bring_up(supervisor: Supervisor, plan: Plan, printer: LogPrinter) -> None:
    await supervisor.start()
    if plan.client_config is None:
        printer.line(f"no health check: there is no {CLIENT_CONFIG_FILE} and the certificates are your own")
    elif ended := _ended(plan.client_config, printer):
        printer.line(f"no health check: {ended}")
    else:
        await _ask("health", plan, printer)
    file = plan.layout.base / CLIENT_CONFIG_FILE
    sys.stdout.write(f"joblet ready: {LOOPBACK}:{plan.port} config={file}\n")
    sys.stdout.flush()


def _ended(client_config: Path, printer: LogPrinter) -> str:
    """Why the node cannot be asked, when our own certificate has ended: that must not keep it from serving others.

    Clients' certificates last 45 days, nodes longer.
    """
    context = load_context(client_config, "default")
    for warning in context.warnings:
        printer.line(warning)
    if not has_ended(context.cert, now_ns=time.time_ns()):
        return ""
    return f"the certificate {context.cert_name or 'of the context default'} has ended: " + advice(
        context.cert_name, context.cert
    )


async def _unless_stopped(coroutine: Coroutine[Any, Any, None], stop: asyncio.Event) -> bool:
    """Run it; False when a signal came first. Its exception is raised here."""
    work = asyncio.create_task(coroutine)
    stopped = asyncio.create_task(stop.wait())
    await asyncio.wait({work, stopped}, return_when=asyncio.FIRST_COMPLETED)
    stopped.cancel()
    if work.done():
        work.result()
        return True
    work.cancel()
    await asyncio.wait({work})
    return False


async def _ask(question: str, plan: Plan, printer: LogPrinter) -> str:
    """Put a question to the node in a process of its own. Raises JobletError(UNAVAILABLE) with its answer."""
    child = await asyncio.create_subprocess_exec(
        *(sys.executable, "-m", "cli.joblet.node", question, "--config", str(plan.client_config)),
        stdin=asyncio.subprocess.DEVNULL,
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.PIPE,
        start_new_session=True,
    )
    try:
        async with asyncio.timeout(QUESTION_TIMEOUT_S):
            output, errors = await child.communicate()
    except BaseException:
        with contextlib.suppress(ProcessLookupError):
            child.kill()
        await child.wait()
        raise
    for line in errors.decode("utf-8", "replace").splitlines():
        printer.line(line, OWN_NAME)
    if child.returncode != 0:
        last = errors.decode("utf-8", "replace").strip().splitlines()[-1:] or ["no answer"]
        raise unavailable(f"{question}: {last[0]}", "see the services' log above")
    return output.decode("utf-8", "replace").strip()


def _detach(base: Path, *, stop_jobs: bool) -> None:
    """Start the same command again in a session of its own, and wait for its line."""
    del stop_jobs  # it stands in the command line that is repeated
    base.mkdir(mode=0o755, parents=True, exist_ok=True)
    log_file = base / LOG_FILE
    repeated = [argument for argument in sys.argv[1:] if argument != "--detach"]
    descriptor = os.open(log_file, os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_NOFOLLOW | os.O_CLOEXEC, 0o600)
    with os.fdopen(descriptor, "ab") as log:
        child = subprocess.Popen(
            [sys.executable, "-m", "cli.joblet.main", *repeated],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=log,
            start_new_session=True,
        )
    assert child.stdout is not None
    line = child.stdout.readline().decode()
    if not line:
        status = child.wait()
        tail = log_file.read_text("utf-8", "replace").strip().splitlines()[-1:] or [f"exit code {status}"]
        raise JobletError(Reason.UNAVAILABLE, tail[0], detail=f"see {log_file}")
    sys.stdout.write(line)
    child.returncode = 0  # it goes on without us: subprocess must not warn about it


@contextlib.contextmanager
def _process(pid: int) -> Iterator[int]:
    """A pidfd: it means this very process, even after its number is given to another."""
    descriptor = os.pidfd_open(pid)
    try:
        yield descriptor
    finally:
        os.close(descriptor)
