"""From a job's record to the launch of it: every step decided here, none taken. Pure.

Here: policy: what is in a job's root, whom it runs as, what it may use. Not here: how a step is done
(`launcher/operations.py`), the groups' limits (`cgroups/`). docs/adr/0004-launcher-and-monitor.md gives the reasons.
"""

import posixpath
from typing import Final, NamedTuple

from common.config.layout import Layout
from common.config.settings import Jobs, Settings
from common.errors import JobletError, Reason, invalid
from common.messages.jobs import JobRecord, JobSpec, Network
from services.executor.cgroups.driver import CgroupPlan
from services.executor.launcher import devices
from services.executor.launcher import operations as steps
from services.executor.launcher.task import Groups, JournalLimits, Meter, Reading, ResourceLimit, Task

UPLOAD_BYTES_PER_MS: Final = 10 * 1024
"""So fast at least an upload is unpacked; slower, and the start is given up."""
START_MS: Final = 30_000

ROOT_BYTES: Final = 1024 * 1024
ROOT_INODES: Final = 256
TERMINALS_MAX: Final = 64
HOSTNAME_CHARACTERS: Final = 12
UPLOAD_ENTRY_BYTES: Final = 4096  # the page that the last part of a file fills

DEVICES: Final = (
    ("/dev/null", 1, 3),
    ("/dev/zero", 1, 5),
    ("/dev/full", 1, 7),
    ("/dev/random", 1, 8),
    ("/dev/urandom", 1, 9),
    ("/dev/tty", 5, 0),
)
DEVICE_LINKS: Final = (
    ("/dev/fd", "/proc/self/fd"),
    ("/dev/stdin", "/proc/self/fd/0"),
    ("/dev/stdout", "/proc/self/fd/1"),
    ("/dev/stderr", "/proc/self/fd/2"),
    ("/dev/ptmx", "pts/ptmx"),
)
HOST_CONFIGURATION: Final = ("/etc/ld.so.cache", "/etc/alternatives", "/etc/ssl/certs")
"""Of the host's /etc only what programs need to be found and to check certificates."""
MASKED: Final = (
    "/proc/acpi",
    "/proc/asound",
    "/proc/cmdline",
    "/proc/config.gz",
    "/proc/interrupts",
    "/proc/kallsyms",
    "/proc/kcore",
    "/proc/keys",
    "/proc/key-users",
    "/proc/kmsg",
    "/proc/latency_stats",
    "/proc/sched_debug",
    "/proc/scsi",
    "/proc/sysrq-trigger",
    "/proc/timer_list",
    "/proc/timer_stats",
    "/proc/vmallocinfo",
)
RESOURCES: Final = (
    ResourceLimit("RLIMIT_CORE", 0, 0),
    ResourceLimit("RLIMIT_NOFILE", 1024, 4096),
    ResourceLimit("RLIMIT_MEMLOCK", 64 * 1024, 64 * 1024),
    ResourceLimit("RLIMIT_RTPRIO", 0, 0),
    ResourceLimit("RLIMIT_NICE", 0, 0),
)
PATH: Final = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"
USER: Final = "job"
HOME: Final = "/work"


class JobIdentity(NamedTuple):
    """Whom the job is on the host."""

    uid: int
    gid: int


class Launch(NamedTuple):
    """A decided launch: what the launcher is told, and the groups that the cgroup driver made before."""

    task: Task
    cgroup: CgroupPlan

    def describe(self) -> tuple[str, ...]:
        """Every step in one line, in order. Values of the environment are not shown."""
        task, cgroup = self.task, self.cgroup
        lines = [f"make cgroup {directory}" for directory in cgroup.directories]
        lines += [f"write {write.value} to {write.path}" for write in cgroup.writes]
        lines.append(f"start a monitor: {_describe_monitor(task)}")
        into = f" in cgroup {cgroup.clone_into}" if cgroup.clone_into else ""
        lines.append(f"clone an init into new mount, pid, ipc, uts and net namespaces{into}")
        lines += [f"place it by {path}" for path in cgroup.join]
        lines += [operation.describe() for operation in task.operations]
        lines.append("fork the main process into a new session, with default signals, umask 022, descriptors 0, 1, 2")
        lines += [f"limit {limit.name} to {limit.soft} (hard {limit.hard})" for limit in task.resources]
        lines.append(
            f"become uid {task.uid} gid {task.gid}: no groups, no capabilities, no new privileges, new keyring"
        )
        lines += [f"unpack upload {posixpath.basename(path)} into {HOME}" for path in task.uploads]
        lines.append(f"change to {task.workdir}")
        lines.append(f"set the environment: {' '.join(name for name, _ in task.environment)}")
        lines.append(f"execute {' '.join((task.command, *task.args))}")
        return tuple(lines)


def plan_launch(
    job: JobRecord, *, identity: JobIdentity, cgroup: CgroupPlan, settings: Settings, layout: Layout
) -> Launch:
    """The launch of `job`. JobletError: INVALID or UNIMPLEMENTED, naming what in its spec cannot be."""
    spec, jobs = job.spec, settings.joblet.jobs
    _check(spec)
    journal = settings.joblet.journal
    hostname = job.id[:HOSTNAME_CHARACTERS]
    task = Task(
        job_id=job.id,
        job_dir=str(layout.job_dir(job.id)),
        command=spec.command,
        args=spec.args,
        environment=tuple({**_default_environment(job), **spec.environment}.items()),
        workdir=spec.workdir,
        uid=identity.uid,
        gid=identity.gid,
        resources=RESOURCES,
        operations=_operations(spec, identity, hostname, jobs),
        uploads=tuple(str(layout.upload(upload.id)) for upload in spec.uploads),
        journal=JournalLimits(journal.bytes_max, journal.on_full == "drop", journal.silence_ms),
        groups=_groups(cgroup),
        start_ms_max=START_MS + sum(upload.bytes for upload in spec.uploads) // UPLOAD_BYTES_PER_MS,
        timeout_ms=spec.limits.timeout_ms,
        stop_signal=spec.stop_signal,
        grace_ms=spec.grace_ms,
    )
    return Launch(task, cgroup)


def work_bytes(spec: JobSpec, jobs: Jobs) -> int:
    """Size of /work: as asked for, else the default and room for the uploads."""
    if spec.work_bytes is not None:
        return spec.work_bytes
    return jobs.work_bytes + sum(upload.bytes + upload.entries * UPLOAD_ENTRY_BYTES for upload in spec.uploads)


def _check(spec: JobSpec) -> None:
    """Refuse what cannot be launched truly; nothing asked for is left out in silence."""
    if spec.volumes:
        raise JobletError(Reason.UNIMPLEMENTED, "volumes are not supported yet", detail="run the job without --volume")
    if spec.network is not Network.NONE:
        raise JobletError(
            Reason.UNIMPLEMENTED, f"network {spec.network} is not supported yet", detail="use --network none"
        )
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


def _operations(spec: JobSpec, identity: JobIdentity, hostname: str, jobs: Jobs) -> tuple[steps.Operation, ...]:
    work, uid, gid = work_bytes(spec, jobs), identity.uid, identity.gid
    entries = sum(upload.entries for upload in spec.uploads)
    return (
        steps.UnshareCgroups(),
        steps.SetHostname(hostname),
        steps.LoopbackUp(),
        steps.MakeMountsPrivate(),
        steps.MountRoot(ROOT_BYTES, ROOT_INODES),
        *(steps.MakeDirectory(path) for path in ("/etc", "/etc/ssl", "/dev", "/dev/pts", "/dev/shm", "/proc")),  # noqa: S108
        *(steps.MakeDirectory(path) for path in ("/tmp", "/work", "/volumes")),  # noqa: S108
        *(steps.BindReadOnly(path) for path in (*jobs.read_only_paths, *HOST_CONFIGURATION)),
        *(steps.WriteFile(path, content) for path, content in _configuration(identity, hostname)),
        *(devices.BindDevice(*device) for device in DEVICES),
        *(steps.MakeSymlink(path, target) for path, target in DEVICE_LINKS),
        devices.MountTerminals("/dev/pts", gid, TERMINALS_MAX),
        devices.MountProc("/proc"),
        devices.MaskPaths(MASKED, "/tmp"),  # noqa: S108
        _tmpfs("/dev/shm", jobs.tmp_bytes, 0o1777, JobIdentity(0, 0), executable=False),  # noqa: S108
        _tmpfs("/tmp", jobs.tmp_bytes, 0o1777, JobIdentity(0, 0)),  # noqa: S108
        _tmpfs("/work", work, 0o755, JobIdentity(uid, gid), entries=entries),
        steps.EnterRoot(),
        steps.SealRoot(),
    )


def _tmpfs(
    path: str, size_bytes: int, mode: int, owner: JobIdentity, *, entries: int = 0, executable: bool = True
) -> steps.MountTmpfs:
    # Inodes cost memory that `size` does not count: about one for each KiB is more than small files need.
    inodes_max = 1024 + size_bytes // 1024 + 2 * entries
    return steps.MountTmpfs(path, size_bytes, inodes_max, mode, owner.uid, owner.gid, executable)


def _configuration(identity: JobIdentity, hostname: str) -> tuple[tuple[str, str], ...]:
    nobody = "nobody:x:65534:65534:nobody:/nonexistent:/usr/sbin/nologin"
    return (
        (
            "/etc/passwd",
            "root:x:0:0:root:/:/usr/sbin/nologin\n"
            f"{USER}:x:{identity.uid}:{identity.gid}:{USER}:{HOME}:/bin/sh\n{nobody}\n",
        ),
        ("/etc/group", f"root:x:0:\n{USER}:x:{identity.gid}:\nnogroup:x:65534:\n"),
        ("/etc/hostname", f"{hostname}\n"),
        ("/etc/hosts", f"127.0.0.1 localhost\n::1 localhost\n127.0.1.1 {hostname}\n"),
        ("/etc/resolv.conf", ""),
        ("/etc/nsswitch.conf", "passwd: files\ngroup: files\nhosts: files dns\n"),
    )


def _groups(cgroup: CgroupPlan) -> Groups:
    return Groups(
        cgroup.join,
        cgroup.clone_into,
        tuple(Meter(name, tuple(Reading(*reading) for reading in readings)) for name, readings in cgroup.usage),
        cgroup.oom_watch,
    )


def _describe_monitor(task: Task) -> str:
    journal = task.journal
    limit = "no run time limit" if task.timeout_ms is None else f"run time limit {task.timeout_ms} ms"
    when_full = "drops output" if journal.drop_when_full else "makes the job wait"
    return (
        f"journal of at most {journal.bytes_max} bytes ({when_full} when full), {limit},"
        f" signal {task.stop_signal} and {task.grace_ms} ms of grace to stop"
    )
