"""From a job's record to the launch of it: every step decided here, none taken. Pure.

Here: policy: how a job's process begins and what it may use. Not here: what is in its root (`sandbox.py`), how a step
is done (`launcher/operations.py`), the groups' limits (`cgroups/`). docs/adr/0004-launcher-and-monitor.md gives the
reasons.
"""

import posixpath
from collections.abc import Mapping
from typing import Final, NamedTuple

from common.config.layout import Layout
from common.config.settings import Jobs, Journal, Settings
from common.errors import invalid
from common.identifiers import VolumeId
from common.messages.jobs import JobRecord, JobSpec, Limits, OnFull
from common.messages.volumes import PreparedVolume
from services.executor.cgroups.driver import CgroupPlan, Meter
from services.executor.identity import JOB_UID, JobIdentity
from services.executor.launcher.operations import Operation
from services.executor.launcher.task import NEW_NETWORK, Groups, JournalLimits, Reading, ResourceLimit, Task, Write
from services.executor.launcher.task import Meter as TaskMeter
from services.executor.mount_points import check_mounts, in_order
from services.executor.sandbox import HOME, USER, Contents, Shape, completion, preparation

UPLOAD_BYTES_PER_MS: Final = 10 * 1024
"""So fast at least an upload is unpacked; slower, and the start is given up."""
START_MS: Final = 30_000

OPEN_FILES: Final = (1024, 4096)
"""Soft and hard, where the job does not say."""
RESOURCES: Final = (
    # 1, not 0: a core_pattern that is a program runs at 0 all the same, as the host's root, core(5).
    ResourceLimit("RLIMIT_CORE", 1, 1),
    ResourceLimit("RLIMIT_MEMLOCK", 64 * 1024, 64 * 1024),
    ResourceLimit("RLIMIT_MSGQUEUE", 800 * 1024, 800 * 1024),
    ResourceLimit("RLIMIT_SIGPENDING", 1024, 1024),
    ResourceLimit("RLIMIT_RTPRIO", 0, 0),
    ResourceLimit("RLIMIT_NICE", 0, 0),
)
PATH: Final = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"
HOSTNAME_CHARACTERS: Final = 12
UPLOAD_ENTRY_BYTES: Final = 4096  # the page that the last part of a file fills


class NetworkPlan(NamedTuple):
    """What the launch must know of the job's network, which is made before it."""

    place: str = NEW_NETWORK
    resolv_conf: str = ""
    steps: tuple[str, ...] = ()
    usage: tuple[Meter, ...] = ()


class Launch(NamedTuple):
    """A decided launch: what the launcher is told, and the groups and the network that are made before."""

    task: Task
    cgroup: CgroupPlan
    network: NetworkPlan

    def with_environment(self, more: Mapping[str, str]) -> "Launch":
        """The launch with more variables, or other values of those that there are."""
        environment = {**dict(self.task.environment), **more}
        return self._replace(task=self.task._replace(environment=tuple(environment.items())))

    def describe(self) -> tuple[str, ...]:
        """Every step in one line, in order. Values of the environment are not shown."""
        task, cgroup = self.task, self.cgroup
        lines = [f"make cgroup {directory}" for directory in cgroup.directories]
        lines += [f"write {write.value} to {write.path}" for write in cgroup.writes]
        lines += self.network.steps
        lines.append(f"start a monitor: {_describe_monitor(task)}")
        into = f" in cgroup {cgroup.clone_into}" if cgroup.clone_into else ""
        lines.append(f"clone an init into new {_namespaces(task)} namespaces{into}")
        lines += [f"place it by {path}" for path in cgroup.join]
        lines += [operation.describe() for operation in task.preparation + task.operations]
        lines.append("fork the main process into a new session, with default signals, umask 022, descriptors 0, 1, 2")
        lines += [f"limit {limit.name} to {limit.soft} (hard {limit.hard})" for limit in task.resources]
        lines += _describe_user(task)
        lines += [f"unpack upload {posixpath.basename(path)} into {HOME}" for path in task.uploads]
        lines.append(f"change to {task.workdir}")
        lines.append(f"set the environment: {' '.join(name for name, _ in task.environment)}")
        lines.append("load the system call filter")
        lines.append(f"execute {' '.join((task.command, *task.args))}")
        return tuple(lines)


def plan_launch(
    job: JobRecord,
    *,
    identity: JobIdentity,
    cgroup: CgroupPlan,
    settings: Settings,
    layout: Layout,
    rootfs: tuple[Operation, ...],
    network: NetworkPlan,
    volumes: tuple[PreparedVolume, ...] = (),
) -> Launch:
    """The launch of `job`. JobletError: INVALID, naming what in its spec cannot be.

    `rootfs` puts the programs into the new root (rootfs.py). `volumes`: those of the spec as they were prepared;
    without them a job that has some can be described, and not launched.
    """
    spec, jobs = job.spec, settings.joblet.jobs
    _check(spec)
    check_mounts(spec.volumes, jobs.read_only_paths)
    prepared = _in_order(spec, volumes)
    journal = settings.joblet.journal
    shape = Shape(job.id[:HOSTNAME_CHARACTERS], rootfs, network.place == NEW_NETWORK, network.resolv_conf)
    task = Task(
        job_id=job.id,
        job_dir=str(layout.job_dir(job.id)),
        command=spec.command,
        args=spec.args,
        environment=tuple(
            {**_default_environment(job), **spec.environment, **dict.fromkeys(spec.secret_names, "")}.items()
        ),
        workdir=spec.workdir,
        host_uid=identity.uid,
        host_gid=identity.gid,
        uid=JOB_UID,
        gid=JOB_UID,
        range_first=identity.range_first,
        network=network.place,
        resources=_resources(spec.limits),
        preparation=preparation(shape, prepared),
        operations=completion(
            Contents(
                identity=identity,
                tmp_bytes=jobs.tmp_bytes,
                work_bytes=work_bytes(spec, jobs),
                work_entries=sum(upload.entries for upload in spec.uploads),
            ),
            shape,
            prepared,
        ),
        uploads=tuple(str(layout.upload(upload.id)) for upload in spec.uploads),
        journal=JournalLimits(journal.bytes_max, _on_full(spec, journal) is OnFull.DROP, journal.silence_ms),
        groups=_groups(cgroup, network),
        start_ms_max=START_MS + sum(upload.bytes for upload in spec.uploads) // UPLOAD_BYTES_PER_MS,
        timeout_ms=spec.limits.timeout_ms,
        stop_signal=spec.stop_signal,
        grace_ms=spec.grace_ms,
    )
    return Launch(task, cgroup, network)


def work_bytes(spec: JobSpec, jobs: Jobs) -> int:
    """Size of /work: as asked for, else the default and room for the uploads."""
    if spec.work_bytes is not None:
        return spec.work_bytes
    return jobs.work_bytes + sum(upload.bytes + upload.entries * UPLOAD_ENTRY_BYTES for upload in spec.uploads)


def _in_order(spec: JobSpec, volumes: tuple[PreparedVolume, ...]) -> tuple[PreparedVolume, ...]:
    """What was prepared for each volume of the spec, as they can be mounted. What was not has no source: it fails."""
    found = {each.mount: each for each in volumes}
    assert set(found) <= set(spec.volumes), "a volume was prepared that the job did not ask for"
    return tuple(
        found.get(mount) or PreparedVolume(id=VolumeId(""), mount=mount, source="", root="", device="")
        for mount in in_order(spec.volumes)
    )


def _check(spec: JobSpec) -> None:
    """Refuse what cannot be launched truly; nothing asked for is left out in silence."""
    if not spec.command:
        raise invalid("the command is empty", "name a program")
    if any("\0" in text for text in (spec.command, *spec.args, *spec.environment, *spec.environment.values())):
        raise invalid("command, arguments or environment contain a NUL", "the kernel ends every argument at a NUL")
    for name in spec.environment:
        if not name or "=" in name:
            raise invalid(f"malformed environment variable {name[:64]!r}", "use NAME=VALUE")
    if not _is_plain_directory(spec.workdir):
        raise invalid(f"workdir {spec.workdir[:200]!r} is refused", "use an absolute path such as /work, without '..'")


def _is_plain_directory(path: str) -> bool:
    """Absolute, without '..' or NUL, and not in a file system of links to other places."""
    parts = [part for part in path.split("/") if part not in ("", ".")]
    return path.startswith("/") and "\0" not in path and ".." not in parts and parts[:1] not in (["proc"], ["dev"])


def _on_full(spec: JobSpec, journal: Journal) -> OnFull:
    return spec.on_full or OnFull(journal.on_full)  # a job that an older release admitted has none


def _default_environment(job: JobRecord) -> dict[str, str]:
    return {
        "PATH": PATH,
        "HOME": HOME,
        "USER": USER,
        "LOGNAME": USER,
        "LANG": "C.UTF-8",
        "TMPDIR": "/tmp",  # noqa: S108  # the job's own tmpfs
        "JOBLET_JOB_ID": job.id,
    }


def _resources(limits: Limits) -> tuple[ResourceLimit, ...]:
    soft, hard = OPEN_FILES if limits.open_files is None else (limits.open_files, limits.open_files)
    resources = (*RESOURCES, ResourceLimit("RLIMIT_NOFILE", soft, hard))
    if limits.file_bytes is None:
        return resources
    return (*resources, ResourceLimit("RLIMIT_FSIZE", limits.file_bytes, limits.file_bytes))


def _groups(cgroup: CgroupPlan, network: NetworkPlan) -> Groups:
    meters = (TaskMeter(name, tuple(Reading(*each) for each in found)) for name, found in cgroup.usage + network.usage)
    lift = tuple(Write(*write) for write in cgroup.lift)
    return Groups(cgroup.join, cgroup.clone_into, tuple(meters), cgroup.oom_watch, lift)


def _namespaces(task: Task) -> str:
    words = ["mount", "pid", "ipc", "uts"]
    words += ["user"] if task.range_first is None else []
    words += ["net"] if task.network == NEW_NETWORK else []
    return f"{', '.join(words[:-1])} and {words[-1]}"


def _describe_user(task: Task) -> list[str]:
    lines = []
    if task.range_first is not None:
        lines.append(f"enter a new user namespace, whose ids 0 to 65535 are {task.range_first} and up on the host")
    lines.append(f"become uid {task.uid} gid {task.gid}: no groups, no capabilities, no new privileges, new keyring")
    return lines


def _describe_monitor(task: Task) -> str:
    journal = task.journal
    limit = "no run time limit" if task.timeout_ms is None else f"run time limit {task.timeout_ms} ms"
    when_full = "drops output" if journal.drop_when_full else "makes the job wait"
    return (
        f"journal of at most {journal.bytes_max} bytes ({when_full} when full), {limit},"
        f" signal {task.stop_signal} and {task.grace_ms} ms of grace to stop"
    )
