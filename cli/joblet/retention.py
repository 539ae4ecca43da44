"""`joblet retention`: apply the node's rules of retention now, or tell what they would remove.

Asks the persist service on its own socket, which is there for the group `joblet`; nothing of the api is needed. What
the rules mean is told in docs/operations.md. Not here: the rules (the configuration), the removing (persist).
"""

import json
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Final

from cli.client.channel import prepare_environment

prepare_environment()

import click  # noqa: E402  # gRPC says nothing on stderr only when the environment was prepared before
import grpc  # noqa: E402

from cli.client.escape import escape_line  # noqa: E402
from cli.joblet.up import base_dir_option  # noqa: E402
from common.config.layout import layout_of  # noqa: E402
from common.config.load import load_settings  # noqa: E402
from common.errors import JobletError, Reason, precondition, unavailable  # noqa: E402
from common.quantities import format_size, format_time_ns  # noqa: E402
from proto.joblet.v1 import persist_pb2 as pb  # noqa: E402
from proto.joblet.v1.persist_pb2_grpc import PersistServiceStub  # noqa: E402

NOTE_TRAILER: Final = "joblet-note"
"""Of the answer: something that does not fit into a removal (services/persist/server.py)."""
APPLY_TIMEOUT_S: Final = 3600.0
"""Removing takes as long as there is something to remove; a persist that hangs is not waited for longer than this."""
_ROW: Final = "{:36}  {:20}  {:>10}  {:11}  {}"


@click.command(epilog="Example: joblet retention --dry-run --base-dir /tmp/node")
@click.option("--dry-run", is_flag=True, help="Change nothing, only tell what would be removed.")
@base_dir_option
@click.option("--config", type=click.Path(dir_okay=False, path_type=Path), help="Configuration file.")
@click.option("--json", "as_json", is_flag=True, help="One JSON object a removal.")
def retention(*, dry_run: bool, base_dir: Path | None, config: Path | None, as_json: bool) -> None:
    """Remove what the configuration's rules of retention say, now, without waiting for the next time.

    Only of jobs that have ended; their records stay. Without any rule nothing is removed. For root and members of the
    group joblet.
    """
    count = total = 0
    with _persist(layout_of(load_settings(config, base_dir=base_dir)).persist_grpc) as stub:
        call = stub.ApplyRetention(pb.ApplyRetentionRequest(dry_run=dry_run), timeout=APPLY_TIMEOUT_S)
        for removal in call:
            if not count and not as_json:
                click.echo(_ROW.format("JOB", "ENDED", "SIZE", "WHY", "OWNER"))
            click.echo(_json(removal) if as_json else _text(removal))
            count += 1
            total += removal.bytes
        note = dict(call.trailing_metadata() or ()).get(NOTE_TRAILER, "")
    if note:
        click.echo(f"joblet: {escape_line(str(note))}", err=True)
    if not as_json:
        verb = "would be removed" if dry_run else "removed"
        click.echo(f"{format_size(total)} of {count} {'job' if count == 1 else 'jobs'} {verb}")


@contextmanager
def _persist(socket: Path) -> Iterator[PersistServiceStub]:
    """The service behind `socket`. Raises JobletError when it is not there, or not for us."""
    repair = "start the node with `joblet up`, or name another one with --base-dir or --config"
    try:
        # By a descriptor: an address of unix(7) has 107 bytes at most, a base directory may be deeper.
        directory = os.open(socket.parent, os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
    except FileNotFoundError as cause:
        raise unavailable(f"persist does not run: there is no {socket.parent}", repair) from cause
    except OSError as cause:
        raise precondition(f"cannot open {socket.parent}: {cause.strerror}", "name the right directory") from cause
    try:
        name = f"/proc/self/fd/{directory}/{socket.name}"
        if not os.access(name, os.F_OK) and os.access(socket.parent, os.X_OK):
            raise unavailable(f"persist does not run: there is no {socket}", repair)
        if not os.access(name, os.R_OK | os.W_OK):
            raise JobletError(
                Reason.DENIED, f"{socket} is closed to you", detail="run it as root or as a member of the group joblet"
            )
        with grpc.insecure_channel(f"unix:{name}", options=(("grpc.enable_http_proxy", 0),)) as channel:
            yield PersistServiceStub(channel)
    except grpc.RpcError as error:
        raise _as_error(error, socket, repair) from error
    finally:
        os.close(directory)


def _as_error(error: grpc.RpcError, socket: Path, repair: str) -> JobletError:
    assert isinstance(error, grpc.Call)
    if error.code() is grpc.StatusCode.UNAVAILABLE and "connect" in (error.details() or ""):
        return unavailable(f"persist does not answer at {socket}", repair)
    return unavailable(f"persist refused: {error.details()}", "see the log of the persist service")


def _json(removal: pb.Removal) -> str:
    return json.dumps(
        {
            "job": removal.job_id,
            "owner": removal.owner,
            "ended_at": format_time_ns(removal.ended_at),
            "bytes": removal.bytes,
            "why": removal.why,
            "through_sequence": removal.through_sequence,
        }
    )


def _text(removal: pb.Removal) -> str:
    rest = f", entries up to {removal.through_sequence}" if removal.through_sequence else ""
    ended = format_time_ns(removal.ended_at // 10**9 * 10**9)
    cells = (removal.job_id, ended, format_size(removal.bytes), removal.why, (removal.owner or "-") + rest)
    return _ROW.format(*map(escape_line, cells))
