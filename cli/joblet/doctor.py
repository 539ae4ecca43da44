"""`joblet doctor`: what this host can enforce, with the repair for what it cannot.

The probing itself belongs to the executor, which must know before it promises anything. A running node has done it, and
is asked over the `default` context. Without one the executor's program is started for that alone (`joblet-executor
--probe`), as whoever runs the doctor. Which of both it was is told. Ways to keep volumes: `doctorvolumes.py`.
"""

import json
import platform
import time
from pathlib import Path
from typing import Final, NamedTuple

import click
import msgspec

from cli.client.contexts import load_context
from cli.client.escape import escape_line
from cli.joblet.doctorcerts import CertificateRow, certificate_rows, unusable
from cli.joblet.doctorprobe import probed
from cli.joblet.doctorvolumes import volume_rows
from cli.joblet.firststart import CLIENT_CONFIG_FILE
from cli.joblet.up import base_dir_option
from common.config.load import load_settings
from common.errors import JobletError, Reason
from common.messages.jobs import Capability, NodeFacts
from common.messages.topics import Service
from common.privileges import default_base_dir
from common.quantities import format_size
from proto.joblet.v1 import node_pb2

CONFINEMENT: Final = frozenset(
    {f"namespace.{name}" for name in ("mount", "pid", "ipc", "uts", "cgroup", "net", "user")}
    | {f"kernel.{name}" for name in ("openat2", "mount_setattr", "clone3", "pidfd_open", "close_range", "pidfd")}
    | {"seccomp", "network.none", "limit.open_files"}
)
LIMITS: Final = frozenset({"limit.cpu", "limit.memory", "limit.pids", "cgroup.clone_into"})
"""Capabilities that a job with default settings cannot be without; a rootless node promises the first only."""

OWNER_RANGE: Final = "owner.range"
"""Missing: the node is rootless."""

_WORDS: Final = {
    node_pb2.Capability.ENFORCED: "enforced",
    node_pb2.Capability.DEGRADED: "degraded",
    node_pb2.Capability.MISSING: "missing",
}


class Source(NamedTuple):
    """Where the answer comes from: `asked` a running node, or `why` this host was probed for it."""

    asked: bool
    why: str


@click.command(epilog="Example: joblet doctor --base-dir /tmp/node")
@base_dir_option
@click.option("--config", type=click.Path(dir_okay=False, path_type=Path), help="Configuration file, without a node.")
@click.option("--json", "as_json", is_flag=True, help="One JSON object.")
def doctor(base_dir: Path | None, config: Path | None, *, as_json: bool) -> int:
    """Tell what a node on this host can enforce and what not, with the repair for each.

    Asks the running node of the base directory; where there is none, tries everything itself, as the present user.
    Exit code 1 when a default cannot be met.
    """
    base = base_dir or default_base_dir()
    facts, source, info = _examine(base, config)
    certificates = _certificates(base, config, info)
    volumes = volume_rows(base, config)
    click.echo((json_of if as_json else text_of)(facts, source, certificates, volumes))
    return 1 if unmet(facts, certificates) else 0


def unmet(facts: NodeFacts, certificates: tuple[CertificateRow, ...] = ()) -> tuple[str, ...]:
    """Names of the missing capabilities that jobs with default settings need, and of certificates that have ended."""
    missing = {each.name for each in facts.capabilities if each.level == "missing"}
    needed = CONFINEMENT if OWNER_RANGE in missing else CONFINEMENT | LIMITS
    return (*(each.name for each in facts.capabilities if each.name in missing & needed), *unusable(certificates))


def _certificates(base: Path, config: Path | None, info: node_pb2.NodeInfo | None) -> tuple[CertificateRow, ...]:
    try:
        settings = load_settings(config, base_dir=None if config else base)
    except JobletError as error:  # a node may run, and be asked, while its file is being edited
        return (CertificateRow("certificates", "unknown", str(error)),)
    return certificate_rows(info, settings, now_ns=time.time_ns())


def _examine(base: Path, config: Path | None) -> tuple[NodeFacts, Source, node_pb2.NodeInfo | None]:
    file = base / CLIENT_CONFIG_FILE
    if not file.exists():
        return _probe(base, config), Source(asked=False, why=f"there is no {file}, so no node of {base} to ask"), None
    from cli.joblet.node import node_info  # noqa: PLC0415  # gRPC loads only when there is a node to ask

    context = load_context(file, "default")
    try:
        info = node_info(context)
        return _facts_of(info), Source(asked=True, why=""), info
    except JobletError as error:
        if error.reason not in {Reason.UNAVAILABLE, Reason.DEADLINE}:
            raise
        return _probe(base, config), Source(asked=False, why=error.message), None


def _facts_of(info: node_pb2.NodeInfo) -> NodeFacts:
    return NodeFacts(
        node_id=info.node_id,
        version=info.version,
        kernel=info.kernel,
        cgroup_version=info.cgroup_version,
        cpus=info.cpus,
        memory_bytes=info.memory_bytes,
        running_jobs=info.running_jobs,
        capabilities=tuple(
            Capability(name=each.name, level=_WORDS.get(each.level, "unknown"), detail=each.detail)
            for each in info.capabilities
        ),
    )


def _probe(base: Path, config: Path | None) -> NodeFacts:
    return probed(Service.EXECUTOR, base, config, kind=NodeFacts)


def json_of(
    facts: NodeFacts,
    source: Source,
    certificates: tuple[CertificateRow, ...] = (),
    volumes: tuple[Capability, ...] = (),
) -> str:
    """One JSON object: NodeFacts, where they come from, volumes, certificates, and what is unmet."""
    return json.dumps(
        {
            **msgspec.to_builtins(facts),
            "python": platform.python_version(),
            "source": "node" if source.asked else "probe",
            "source_detail": source.why,
            "volumes": msgspec.to_builtins(volumes),
            "certificates": msgspec.to_builtins(certificates),
            "unmet": list(unmet(facts, certificates)),
        }
    )


def text_of(
    facts: NodeFacts,
    source: Source,
    certificates: tuple[CertificateRow, ...] = (),
    volumes: tuple[Capability, ...] = (),
) -> str:
    """Lines for people; nothing in them moves a terminal's cursor."""
    whose = f"asked the running node {facts.node_id}, which runs {facts.running_jobs} jobs"
    lacking = unmet(facts, certificates)
    head = (
        whose if source.asked else f"probed this host itself: {source.why}",
        f"joblet {facts.version}, Linux {facts.kernel}, cgroups {facts.cgroup_version}, {facts.cpus} CPUs,"
        f" {format_size(facts.memory_bytes)}",
    )
    verdict = f"cannot run here, for want of {', '.join(lacking)}" if lacking else "can run here"
    rows = [(each.name, each.level, each.detail) for each in (*facts.capabilities, *volumes)]
    rows += [(each.name, each.level, each.detail) for each in certificates]
    width = max((len(name) for name, _, _ in rows), default=0)
    return "\n".join(
        (
            *map(escape_line, head),
            *(_line(*row, width) for row in rows),
            escape_line(f"jobs with default settings {verdict}"),
        )
    )


def _line(name: str, level: str, detail: str, width: int) -> str:
    return f"{escape_line(name):{width}}  {escape_line(level):8}  {escape_line(detail)}".rstrip()
