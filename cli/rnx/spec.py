"""From the options of `rnx job run` to the JobSpec that is sent.

Here: names of options, their meaning and what the client refuses itself. Not here: running (`run.py`); whether the node
can do it is the node's to say.
"""

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, Final, NamedTuple

import click

from cli.front.values import COUNT, DURATION, MEMORY, PERCENT, RATE, SIGNAL, SIZE, check_utf8
from cli.rnx.names import volume_names
from cli.rnx.values import (
    CPUS,
    SCHEDULE,
    VOLUME,
    VolumeArgument,
    environment,
    pairs,
)
from common.errors import JobletError, Reason
from proto.joblet.v1 import job_pb2

NETWORKS: Final = ("none", "isolated", "bridge", "host")
ON_FULL: Final = ("block", "drop")
PRIORITY_MAX: Final = 100


class RunOptions(NamedTuple):
    """Every option of `job run` about the job itself, by the name click gives it. None: not given."""

    command: tuple[str, ...]
    name: str
    label: tuple[str, ...]
    env: tuple[str, ...]
    secret_env: tuple[str, ...]
    workdir: str
    work_size: int | None
    max_cpu: int | None
    cpus: int | None
    cpu_weight: int | None
    cpu_cores: str | None
    max_memory: int | None
    pids: int | None
    io_weight: int | None
    read_bps: int | None
    write_bps: int | None
    read_iops: int | None
    write_iops: int | None
    max_iobps: int | None
    open_files: int | None
    file_size: int | None
    timeout: int | None
    volume: tuple[VolumeArgument, ...]
    upload: tuple[Path, ...]
    upload_dir: tuple[Path, ...]
    network: str | None
    schedule: int | None
    priority: int
    grace: int | None
    stop_signal: str | None
    on_full: str | None


_PATH: Final = click.Path(path_type=Path)

_OPTIONS: Final = (
    click.option("--name", default="", help="A name for people; need not be unique."),
    click.option("--label", multiple=True, metavar="K=V", help="A label to find it by. Repeatable."),
    click.option(
        "--env", "-e", multiple=True, metavar="K=V", help="A variable of the job; K alone: as it is here. Repeatable."
    ),
    click.option(
        "--secret-env",
        multiple=True,
        metavar="K=V",
        help="The same for a secret: neither stored nor shown. Repeatable.",
    ),
    click.option("--workdir", default="", metavar="PATH", help="Directory to start in.  [default: /work]"),
    click.option("--work-size", type=SIZE, help="Size of /work.  [default: 1 MiB, and the uploads]"),
    click.option("--max-cpu", type=PERCENT, help="CPU time in percent of one core: 150 is one and a half."),
    click.option("--cpus", type=CPUS, help="The same in cores: 1.5."),
    click.option("--cpu-weight", type=COUNT, help="Share against other jobs, 1 to 10000; 100 is normal."),
    click.option("--cpu-cores", metavar="LIST", help="Cores to run on, such as 0-1,4."),
    click.option("--max-memory", type=MEMORY, help="Memory, swap included; a bare number is MB."),
    click.option("--pids", type=COUNT, help="Processes and threads."),
    click.option("--io-weight", type=COUNT, help="Share of each disk it can reach, 1 to 10000; 100 is normal."),
    click.option("--read-bps", type=SIZE, help="Bytes read per second, from each disk that the job can reach."),
    click.option("--write-bps", type=SIZE, help="Bytes written per second, to each of these disks."),
    click.option("--read-iops", type=RATE, help="Reads per second, from each of these disks."),
    click.option("--write-iops", type=RATE, help="Writes per second, to each of these disks."),
    click.option("--max-iobps", type=SIZE, help="Refused: use --read-bps and --write-bps."),
    click.option("--open-files", type=COUNT, help="Descriptors that one process may have open, 3 to 1048576."),
    click.option("--file-size", type=SIZE, help="Size of one file that it writes; beyond it SIGXFSZ."),
    click.option(
        "--timeout",
        type=DURATION,
        help="Run time limit of the job. (That of rnx stands before the verb: rnx --timeout 10s job run.)",
    ),
    click.option(
        "--volume",
        multiple=True,
        type=VOLUME,
        shell_complete=volume_names,
        help="A volume, at /volumes/NAME or PATH. Repeatable.",
    ),
    click.option("--upload", multiple=True, type=_PATH, metavar="PATH", help="A file for /work. Repeatable."),
    click.option(
        "--upload-dir", multiple=True, type=_PATH, metavar="DIR", help="A directory whose contents come to /work."
    ),
    click.option("--network", type=click.Choice(NETWORKS), help="What of the network the job sees."),
    click.option("--schedule", type=SCHEDULE, help="Start not before then: RFC 3339, or a duration from now."),
    click.option(
        "--priority",
        type=click.IntRange(-PRIORITY_MAX, PRIORITY_MAX),
        default=0,
        metavar="N",
        help="Among your jobs that wait for their turn the highest is first, -100 to 100.  [default: 0]",
    ),
    click.option("--grace", type=DURATION, help="Time between the stop signal and SIGKILL.  [default: 10s]"),
    click.option("--stop-signal", type=SIGNAL, help="How the job is asked to stop.  [default: SIGTERM]"),
    click.option(
        "--on-full",
        type=click.Choice(ON_FULL),
        help="When the node has no room for its output: the job waits, or output is dropped.  [default: the node's]",
    ),
)


def job_options(function: Callable[..., Any]) -> Callable[..., Any]:
    """Decorator: COMMAND with its arguments, and every option of RunOptions."""
    function = click.argument("command", nargs=-1, required=True, type=click.UNPROCESSED, metavar="COMMAND [ARG]...")(
        function
    )
    for option in reversed(_OPTIONS):
        function = option(function)
    return function


def build_spec(options: RunOptions) -> job_pb2.JobSpec:
    """The spec without uploads. Raises JobletError or a usage error of click."""
    if options.max_iobps is not None:
        raise JobletError(
            Reason.UNIMPLEMENTED,
            "--max-iobps is not offered",
            detail="limit each direction: --read-bps SIZE and --write-bps SIZE",
        )
    if options.max_cpu is not None and options.cpus is not None:
        raise click.UsageError("--max-cpu and --cpus say the same: give one of them")
    command, *arguments = options.command
    _check_utf8(options)
    spec = job_pb2.JobSpec(
        command=command,
        args=arguments,
        name=options.name,
        labels=pairs(options.label, "--label"),
        environment=_check_environment(environment(options.env, "--env")),
        secret_environment=_check_environment(environment(options.secret_env, "--secret-env")),
        workdir=options.workdir,
        work_bytes=options.work_size,
        limits=_limits(options),
        volumes=[job_pb2.VolumeMount(name=v.name, path=v.path, read_only=v.read_only) for v in options.volume],
        network=options.network.upper() if options.network else None,
        grace_ms=options.grace,
        stop_signal=options.stop_signal or "",
        on_full=options.on_full.upper() if options.on_full else None,
        priority=options.priority,
    )
    if options.schedule is not None:
        spec.start_at.FromNanoseconds(options.schedule)
    return spec


def _limits(options: RunOptions) -> job_pb2.Limits:
    return job_pb2.Limits(
        cpu_percent=options.max_cpu if options.cpus is None else options.cpus,
        cpu_weight=options.cpu_weight,
        cpu_cores=options.cpu_cores,
        memory_bytes=options.max_memory,
        pids=options.pids,
        io_weight=options.io_weight,
        read_bytes_per_s=options.read_bps,
        write_bytes_per_s=options.write_bps,
        read_ops_per_s=options.read_iops,
        write_ops_per_s=options.write_iops,
        open_files=options.open_files,
        file_bytes=options.file_size,
        timeout_ms=options.timeout,
    )


def _check_utf8(options: RunOptions) -> None:
    check_utf8((*options.command, *options.env, *options.label, options.name, options.workdir))
    for variable in options.secret_env:
        check_utf8((variable,), shown=variable.partition("=")[0])


def _check_environment(variables: Mapping[str, str]) -> Mapping[str, str]:
    """`variables`; those that were copied from here, too, are UTF-8. Values are not shown: some are secrets."""
    for name, value in variables.items():
        check_utf8((value,), shown=f"the value of {name}")
    return variables
