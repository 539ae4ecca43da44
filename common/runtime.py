"""How a service process begins and ends: the same for all four.

    arguments → settings → logging → directories → before_drop → (api, persist) no new privileges → ZeroMQ → serve
                                                                   └ bind sockets → drop → READY=1 → … → SIGTERM

Here: that order, the signals, sd_notify(3) and the exit code. Not here: what any service does; a service builds
itself in its `__main__.py` in the function that it hands to `run_service`. Exit codes: 0 ended as asked, 1 failed,
2 the configuration or the command line is wrong.
"""

import argparse
import asyncio
import importlib
import os
import resource
import signal
import socket
import sys
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Final, NoReturn

import msgspec
import structlog

from common.allocator import keep_large_buffers
from common.bus.transport import Transport
from common.bus.zeromq import SocketOwners, ZeroMQ
from common.config.layout import Layout, layout_of
from common.config.load import load_settings, notices
from common.config.ranges import PORT_MAX
from common.config.settings import Settings
from common.errors import JobletError
from common.logsetup import configure_logging, escaped
from common.messages.topics import Service
from common.prctl import die_with, forbid_dumping, forbid_new_privileges, name_process, renounce_new_privileges
from common.privileges import ServiceUsers, default_base_dir, drop, prepare_directories, resolve_users
from common.signals import asked_to_end

log = structlog.get_logger(__name__)

# These load at their first use, which may be after the drop, when the interpreter's own files may be out of reach.
for _late in ("concurrent.futures.thread", "encodings.ascii", "encodings.idna", "encodings.latin_1"):
    importlib.import_module(_late)

EXIT_FAILED: Final = 1
EXIT_CONFIGURATION: Final = 2
SUPERVISOR_VARIABLE: Final = "JOBLET_SUPERVISOR_PID"
"""Set by a supervisor that wants its services to stop when it dies itself (`joblet up`)."""

OOM_SCORE: Final = {Service.EXECUTOR: -500, Service.VOLUMES: -400, Service.PERSIST: -300, Service.API: -200}
"""Jobs go first when memory runs out; then whatever of ours is missed least."""


class Notifier:
    """Tells a service manager how far we are: sd_notify(3), datagrams to $NOTIFY_SOCKET. Without one: nothing.

    Connected at once, while still root, and the variable is taken out of the environment: jobs never see it.
    """

    def __init__(self, address: str | None) -> None:
        self._socket: socket.socket | None = None
        if address:
            self._socket = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM | socket.SOCK_CLOEXEC)
            self._socket.connect(f"\0{address[1:]}" if address.startswith("@") else address)

    def send(self, state: str) -> None:
        """Send such as `READY=1`. A manager that is gone or does not read is no reason to fail."""
        if self._socket is not None:
            try:
                self._socket.send(state.encode(), socket.MSG_DONTWAIT)
            except OSError as cause:
                log.warning("the service manager did not take a notification", state=state, why=cause.strerror)


class Startup:
    """What a service is given to build itself from. One a process."""

    def __init__(
        self,
        *,
        service: Service,
        settings: Settings,
        layout: Layout,
        users: ServiceUsers | None,
        transport: Transport,
        notifier: Notifier,
    ) -> None:
        self.service = service
        self.settings = settings
        self.layout = layout
        self.users = users
        """None when not root: everything belongs to the caller."""
        self.transport = transport
        self._notifier = notifier
        self._stop = asyncio.Event()

    def drop_privileges(self) -> None:
        """Become the service's own user; nothing for a root service, or when not root.

        Bind sockets and import everything before: what is below a directory closed to others cannot be read after.
        """
        uid = _unprivileged_uid(self.service, self.users)
        if uid is not None and self.users is not None:
            drop(uid, self.users.gid)
            if not _follow_supervisor():  # the setuid call cleared it; the supervisor may have died meanwhile
                self.request_stop()

    def ready(self) -> None:
        """The service does its work from now on."""
        log.info("ready")
        self._notifier.send("READY=1")

    async def stopped(self) -> None:
        """Return when the service is asked to end: SIGTERM or SIGINT."""
        await self._stop.wait()

    def request_stop(self) -> None:
        """Ask the service to end; what the signals do."""
        if not self._stop.is_set():
            log.info("stopping")
            self._notifier.send("STOPPING=1")
            self._stop.set()


BeforeDrop = Callable[[Settings, Layout, ServiceUsers | None], None]
"""What a service begins while it has all its rights and no thread. The layout is its own, see Layout.from_base."""


def run_service(
    service: Service,
    serve: Callable[[Startup], Awaitable[None]],
    *,
    before_drop: BeforeDrop | None = None,
    probe: Callable[[Settings], str] | None = None,
) -> None:
    """Run one service process to its end; leaves by SystemExit.

    `probe`: what `--probe` prints on stdout instead of serving, in one line. Without it there is no such option.
    """
    arguments = _arguments(service, probes=probe is not None)
    os.umask(0o077)
    keep_large_buffers()
    name_process(f"joblet-{service}")
    forbid_dumping()
    if not _follow_supervisor():
        raise SystemExit(EXIT_FAILED)
    try:
        settings = load_settings(arguments.config, base_dir=_base_dir(arguments), port=arguments.port)
        if probe is not None and arguments.probe:
            _print_probe(service, settings, probe)
        configure_logging(settings.logging, service)
    except JobletError as error:
        print(f"joblet-{service}: {escaped(str(error))}", file=sys.stderr)  # noqa: T201  # there is no log yet
        raise SystemExit(EXIT_CONFIGURATION) from None
    try:
        _run(service, settings, serve, before_drop)
    except JobletError as error:
        log.error(error.message, what_to_do=error.detail, reason=error.reason.value)
        raise SystemExit(EXIT_FAILED) from None
    except Exception:
        log.exception("the service failed")
        raise SystemExit(EXIT_FAILED) from None
    log.info("ended")


def _print_probe(service: Service, settings: Settings, probe: Callable[[Settings], str]) -> NoReturn:
    configure_logging(msgspec.structs.replace(settings.logging, output="stderr"), service)
    try:
        print(probe(settings))  # noqa: T201  # for whoever started us
    except JobletError as error:
        print(f"joblet-{service}: {escaped(str(error))}", file=sys.stderr)  # noqa: T201  # as above
        raise SystemExit(EXIT_FAILED) from None
    raise SystemExit(0)


def _run(
    service: Service,
    settings: Settings,
    serve: Callable[[Startup], Awaitable[None]],
    before_drop: BeforeDrop | None,
) -> None:
    for notice in notices(settings):
        log.warning(notice)
    notifier = Notifier(os.environ.pop("NOTIFY_SOCKET", None))
    layout = layout_of(settings)
    users = resolve_users(settings.joblet.users, layout) if os.geteuid() == 0 else None
    prepare_directories(layout, users)
    os.chdir(layout.base)
    here = layout.from_base()
    _set_oom_score(service)
    _forbid_core_dumps()
    drops = _unprivileged_uid(service, users) is not None
    if before_drop is not None:
        before_drop(settings, here if drops else layout, users)
    if drops:
        renounce_new_privileges()
    elif users is None:
        forbid_new_privileges()
    owners = SocketOwners(api_uid=users.api_uid, persist_uid=users.persist_uid, gid=users.gid) if users else None
    startup = Startup(
        service=service,
        settings=settings,
        layout=here if drops else layout,
        users=users,
        transport=ZeroMQ(here.run, owners),
        notifier=notifier,
    )
    asyncio.run(_serve(startup, serve))


async def _serve(startup: Startup, serve: Callable[[Startup], Awaitable[None]]) -> None:
    with asked_to_end(startup.request_stop):
        try:
            await serve(startup)
        finally:
            startup.transport.close()


def _unprivileged_uid(service: Service, users: ServiceUsers | None) -> int | None:
    if users is None:
        return None
    match service:
        case Service.API:
            return users.api_uid
        case Service.PERSIST:
            return users.persist_uid
        case _:
            return None


def _follow_supervisor() -> bool:
    """Get SIGTERM when the supervisor that started us dies. False: it is dead already."""
    pid = os.environ.get(SUPERVISOR_VARIABLE, "")
    return die_with(int(pid), signal.SIGTERM) if pid.isdecimal() else True


def _forbid_core_dumps() -> None:
    """What a service knows (keys, secrets of jobs) stays in its memory. 1, not 0: core(5) tells of pipes."""
    resource.setrlimit(resource.RLIMIT_CORE, (1, 1))


def _set_oom_score(service: Service) -> None:
    """Best effort: lowering it needs CAP_SYS_RESOURCE, which a container may not have."""
    try:
        Path("/proc/self/oom_score_adj").write_text(str(OOM_SCORE[service]))
    except OSError as cause:
        log.debug("oom_score_adj stays as it is", why=cause.strerror)


def _arguments(service: Service, *, probes: bool) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog=f"joblet-{service}", description=f"Run joblet's {service} service in the foreground.", allow_abbrev=False
    )
    parser.add_argument("--config", type=Path, help="configuration file (default: joblet-config.yml in the base)")
    parser.add_argument("--base-dir", type=Path, help="base directory, in place of the file's joblet.base_dir")
    parser.add_argument("--port", type=_port, help="port of the gRPC API, in place of the file's server.port")
    if probes:
        parser.add_argument("--probe", action="store_true", help="try what this host can do, print it as JSON, and end")
    return parser.parse_args()


def _base_dir(arguments: argparse.Namespace) -> Path | None:
    """What overrides the configuration's; without either, root's default is the configuration's own."""
    if arguments.base_dir is None and arguments.config is None and os.geteuid() != 0:
        return default_base_dir()
    named: Path | None = arguments.base_dir
    return named


def _port(text: str) -> int:
    if not text.isdecimal() or int(text) > PORT_MAX:
        raise argparse.ArgumentTypeError(f"{text[:20]!r} is no port: use 0 to {PORT_MAX}")
    return int(text)
