"""`joblet doctor`: what this host can enforce, as the running node probed it.

The probing itself belongs to the executor, which must know before it promises anything; so the answer is the
node's own, over the `default` context, and without a running node there is none.
"""

import json
import platform
from pathlib import Path
from typing import Final

import click

from cli.client.contexts import load_context
from cli.client.escape import escape_line
from cli.joblet.firststart import CLIENT_CONFIG_FILE
from cli.joblet.up import base_dir_option
from common.config.settings import DEFAULT_BASE_DIR
from common.errors import JobletError, Reason
from common.quantities import format_size
from proto.joblet.v1 import node_pb2

NEEDED: Final = frozenset(
    {f"namespace.{name}" for name in ("mount", "pid", "ipc", "uts", "cgroup", "net")}
    | {"limit.cpu", "limit.memory", "limit.pids"}
)
"""Capabilities that a job with default settings cannot be without in this release."""

_WORDS: Final = {
    node_pb2.Capability.ENFORCED: "enforced",
    node_pb2.Capability.DEGRADED: "degraded",
    node_pb2.Capability.MISSING: "missing",
}


@click.command(epilog="Example: joblet doctor --base-dir /tmp/node")
@base_dir_option
@click.option("--json", "as_json", is_flag=True, help="One JSON object.")
def doctor(base_dir: Path | None, *, as_json: bool) -> int:
    """Tell what the running node can enforce and what not, with the repair for each.

    Exit code 1 when a default cannot be met, 5 when no node answers.
    """
    base = base_dir or Path(DEFAULT_BASE_DIR)
    file = base / CLIENT_CONFIG_FILE
    if not file.exists():
        raise JobletError(
            Reason.UNAVAILABLE,
            f"no node to ask: there is no {file}",
            detail=f"the running node probes the host; start it with: joblet up --base-dir {base}",
        )
    from cli.joblet.node import node_info  # noqa: PLC0415  # gRPC loads only when there is a node to ask

    info = node_info(load_context(file, "default"))
    click.echo(_as_json(info) if as_json else _as_text(info))
    return 1 if unmet(info) else 0


def unmet(info: node_pb2.NodeInfo) -> tuple[str, ...]:
    """Names of the missing capabilities that jobs with default settings need."""
    return tuple(
        each.name for each in info.capabilities if each.level == node_pb2.Capability.MISSING and each.name in NEEDED
    )


def _as_json(info: node_pb2.NodeInfo) -> str:
    return json.dumps(
        {
            "node_id": info.node_id,
            "version": info.version,
            "kernel": info.kernel,
            "python": platform.python_version(),
            "cgroup_version": info.cgroup_version,
            "cpus": info.cpus,
            "memory_bytes": info.memory_bytes,
            "running_jobs": info.running_jobs,
            "capabilities": [
                {"name": each.name, "level": _WORDS.get(each.level, "unknown"), "detail": each.detail}
                for each in info.capabilities
            ],
            "unmet": list(unmet(info)),
        }
    )


def _as_text(info: node_pb2.NodeInfo) -> str:
    width = max((len(each.name) for each in info.capabilities), default=0)
    lines = [
        f"node {escape_line(info.node_id)}: joblet {info.version}, Linux {info.kernel}, cgroups {info.cgroup_version}, "
        f"{info.cpus} CPUs, {format_size(info.memory_bytes)}, {info.running_jobs} running jobs"
    ]
    lines += [
        f"{escape_line(each.name):{width}}  {_WORDS.get(each.level, 'unknown'):8}  {escape_line(each.detail)}".rstrip()
        for each in info.capabilities
    ]
    return "\n".join(lines)
