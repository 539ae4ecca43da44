"""One sample of every message that may travel, every field set to something that is not its default.

Belongs here: the samples, and what writes the golden file from them (`python -m tests.golden.samples`). Does not
belong here: any judgement. A golden file holds the bytes that a program sent: it grows with new messages and never
changes for old ones. When messages of version 1 get new fields, what they look like then is a file of its own, and the
files before it stay: those bytes must be understood as long as version 1 is.
"""

import json
from pathlib import Path
from typing import Final

from common import records
from common.bus import codec
from common.errors import Reason
from common.identifiers import JobId, VolumeId
from common.messages import jobs, logs, volumes
from common.messages.envelope import Body, Failure, kind_of

EARLIER: Final = tuple(
    Path(__file__).with_name(f"messages_v1{what}.json")
    for what in (
        "",  # before the limits of files, the usage of disks and networks, and the pressures
        "_isolation",  # before on_full, what is lost of a job's output, and what retention needs to know
        "_logs",  # before queues, schedules and secrets
        "_queue",  # before volumes
    )
)
GOLDEN: Final = Path(__file__).with_name("messages_v1_volumes.json")
SENT_AT_NS: Final = 1_704_067_200_123_456_789
JOB: Final = JobId("6fa459ea-ee8a-4ca4-894e-db77e160355e")
RECORD: Final = records.encode(
    records.RecordType.OUTPUT,
    b"out\x00\xff\n",
    time_ns=SENT_AT_NS,
    sequence=7,
    lines=1,
    stream=records.Stream.STDOUT,
)
SPEC: Final = jobs.JobSpec(
    command="/bin/echo",
    args=("a", "ü"),
    name="build",
    labels={"team": "red"},
    environment={"LANG": "C"},
    workdir="/work/sub",
    work_bytes=2**21,
    limits=jobs.Limits(
        cpu_percent=150,
        cpu_weight=200,
        cpu_cores="0-1",
        memory_bytes=2**26,
        pids=64,
        io_weight=300,
        read_bytes_per_s=1,
        write_bytes_per_s=2,
        read_ops_per_s=3,
        write_ops_per_s=4,
        open_files=256,
        file_bytes=2**30,
        timeout_ms=60_000,
    ),
    volumes=(jobs.VolumeMount(name="data", path="/data", read_only=True),),
    network=jobs.Network.ISOLATED,
    uploads=(jobs.Upload(id="u-1", bytes=10, entries=2),),
    grace_ms=500,
    stop_signal=2,
    on_full=jobs.OnFull.DROP,
    priority=-5,
    start_at_ns=SENT_AT_NS + 9,
    secret_names=("TOKEN",),
)
RECORD_OF_JOB: Final = jobs.JobRecord(
    id=JOB,
    owner="ann",
    node_id="node-1",
    state=jobs.State.FAILED,
    spec=SPEC,
    created_at_ns=SENT_AT_NS,
    started_at_ns=SENT_AT_NS + 1,
    ended_at_ns=SENT_AT_NS + 2,
    pid=4711,
    exit_code=7,
    signal=9,
    oom_killed=True,
    reason="out of memory",
    usage=jobs.Usage(
        cpu_time_us=1,
        memory_peak_bytes=2,
        oom_kills=3,
        io_read_bytes=4,
        io_write_bytes=5,
        io_read_ops=6,
        io_write_ops=7,
        network_rx_bytes=8,
        network_tx_bytes=9,
    ),
    last_sequence=12,
    stop_requested_at_ns=SENT_AT_NS + 3,
    lost_entries=4,
    lost_bytes=5,
    queue_position=3,
)
METRIC: Final = logs.StoreMetric(
    job=JOB,
    time_ns=SENT_AT_NS,
    cpu_percent=12.5,
    memory_bytes=1,
    io_read_bytes=2,
    io_write_bytes=3,
    io_read_ops=4,
    io_write_ops=5,
    network_rx_bytes=7,
    network_tx_bytes=8,
    pids=6,
    cpu_pressure=9.5,
    memory_pressure=10.5,
    io_pressure=11.5,
)
VOLUME_ID: Final = VolumeId("0f8fad5b-d9cb-469f-a165-70867728950e")
MOUNT: Final = jobs.VolumeMount(name="data", path="/data", read_only=True)
VOLUME: Final = volumes.VolumeRecord(
    id=VOLUME_ID,
    name="data",
    owner="ann",
    kind=volumes.VolumeKind.FILESYSTEM,
    size_bytes=2**30,
    enforcement=volumes.Enforcement.IMAGE,
    status=volumes.VolumeStatus.IN_USE,
    created_at_ns=SENT_AT_NS,
    labels={"team": "red"},
    shared=True,
    encryption="dm-crypt",
    uses=(volumes.VolumeUse(job=JOB, path="/data", read_only=True, since_ns=SENT_AT_NS + 1),),
    last_used_at_ns=SENT_AT_NS + 2,
    last_used_by=JOB,
    used_bytes=4096,
    used_inodes=12,
    inodes=65_536,
    reason="r",
    origin="base@monday",
    snapshots=1,
    metrics=volumes.VolumeMetrics(
        mounts=1, mount_us=2, unmounts=3, unmount_us=4, read_bytes=5, write_bytes=6, read_ops=7, write_ops=8
    ),
)
SNAPSHOT: Final = volumes.SnapshotRecord(
    id="7c9e6679-7425-40de-944b-e07fc1f90ae7",
    name="monday",
    volume=VOLUME_ID,
    created_at_ns=SENT_AT_NS,
    size_bytes=2**30,
    method=volumes.CopyMethod.REFLINK,
)
PREPARED: Final = volumes.PreparedVolume(
    id=VOLUME_ID, mount=MOUNT, source="/var/lib/joblet/volumes/v/mount/data", root="7:3:12", device="7:3"
)
OF_VOLUMES: Final[tuple[Body, ...]] = (
    jobs.AttachVolume(job=JOB, mount=MOUNT),
    jobs.DetachVolume(job=JOB, volume="data", force=True),
    volumes.CreateVolume(
        owner="ann",
        name="data",
        kind=volumes.VolumeKind.MEMORY,
        size_bytes=2**20,
        labels={"team": "red"},
        shared=True,
        advisory=True,
        encrypted=True,
    ),
    volumes.GetVolume(volume="data", owner="ann", visible_owner="ann"),
    volumes.VolumeFound(volume=VOLUME),
    volumes.ListVolumes(visible_owner="ann", owner="ann", labels={"team": "red"}, page_size=10, page_token="p"),
    volumes.VolumePage(volumes=(VOLUME,), next_page_token="p"),
    volumes.DeleteVolume(volume=VOLUME_ID),
    volumes.VolumeDeleted(volume=VOLUME_ID),
    volumes.ResizeVolume(volume=VOLUME_ID, size_bytes=2**31),
    volumes.CreateSnapshot(volume=VOLUME_ID, name="monday"),
    volumes.SnapshotFound(snapshot=SNAPSHOT),
    volumes.ListSnapshots(volume=VOLUME_ID),
    volumes.SnapshotList(snapshots=(SNAPSHOT,)),
    volumes.DeleteSnapshot(volume=VOLUME_ID, name="monday"),
    volumes.SnapshotDeleted(volume=VOLUME_ID, name="monday"),
    volumes.RestoreSnapshot(volume=VOLUME_ID, name="monday"),
    volumes.CloneVolume(volume=VOLUME_ID, name="copy", snapshot="monday", labels={"team": "red"}),
    volumes.OpenVolumeStream(
        volume=VOLUME_ID,
        direction=volumes.Direction.EXPORT,
        file=f"volume-stream-{'0' * 32}.sock",
        snapshot="monday",
    ),
    volumes.VolumeStreamClosed(entries=3, bytes=4096),
    volumes.GetVolumesService(),
    volumes.VolumesService(instance="i"),
    volumes.CheckVolumes(owner="ann", mounts=(MOUNT,)),
    volumes.VolumesChecked(),
    volumes.PrepareVolumes(job=JOB, owner="ann", uid=101_000, gid=101_000, mounts=(MOUNT,)),
    volumes.VolumesPrepared(volumes=(PREPARED,)),
    volumes.ReleaseVolumes(job=JOB, volume=VOLUME_ID),
    volumes.VolumesReleased(),
    volumes.SyncVolumes(jobs=(JOB,)),
)
SAMPLES: Final[tuple[Body, ...]] = (
    Failure(reason=Reason.NOT_FOUND, message="no job 6fa459ea", detail="list them", retryable=True, retry_after_s=1.5),
    jobs.RunJob(
        owner="ann",
        spec=SPEC,
        idempotency_key="k",
        secrets={"TOKEN": "t0p"},
        running_max=2,
        queued_max=20,
    ),
    jobs.JobAccepted(job=RECORD_OF_JOB, existing=True),
    jobs.PlanJob(owner="ann", spec=SPEC),
    jobs.JobPlan(steps=("mount /proc", "exec /bin/echo")),
    jobs.GetJob(job=JOB, visible_owner="ann"),
    jobs.JobFound(job=RECORD_OF_JOB, delivered=True),
    jobs.ListJobs(
        visible_owner="ann",
        states=(jobs.State.RUNNING, jobs.State.LOST),
        owner="ann",
        labels={"team": "red"},
        page_size=10,
        page_token="p",
    ),
    jobs.JobPage(jobs=(RECORD_OF_JOB,), next_page_token="p"),
    jobs.StopJob(job=JOB, signal=9, grace_ms=0),
    jobs.CancelJob(job=JOB),
    jobs.DeleteJob(job=JOB),
    jobs.JobDeleted(job=JOB),
    jobs.SyncLog(job=JOB, marker="m"),
    jobs.LogSynced(job=JOB),
    jobs.GetNode(),
    jobs.NodeFacts(
        node_id="node-1",
        version="0.1.0",
        kernel="6.18.0",
        cgroup_version="hybrid",
        cpus=2,
        memory_bytes=2**34,
        running_jobs=3,
        capabilities=(jobs.Capability(name="limit.memory", level="enforced", detail="v1"),),
        counters={"lost_entries": 4},
        queued_jobs=6,
        running_max=7,
    ),
    logs.LogRecords(job=JOB, records=RECORD),
    logs.LogMarker(job=JOB, marker="m", last_sequence=7),
    logs.StoreRecords(job=JOB, epoch=3, batch=4, records=RECORD * 2),
    logs.EndOfJob(job=JOB, epoch=3, batch=5, last_sequence=7, owner="ann", ended_at_ns=SENT_AT_NS),
    METRIC,
    logs.Stored(job=JOB, epoch=3, last_sequence=7, ended=True),
    logs.Resend(job=JOB, epoch=3),
    logs.PersistStarted(instance="i"),
    jobs.JobChanged(job=RECORD_OF_JOB, deleted=True),
    *OF_VOLUMES,
)


def payload_of(body: Body) -> bytes:
    """The bytes of `body` with fixed ids and, unlike codec.encode, a fixed time."""
    packed = codec.encode(body, message_id="id-1", cause_id="id-0", reply_to="api-replies-7.sock")
    at = packed.index(b"sent_at_ns") + len(b"sent_at_ns") + 1  # the marker byte of a 64-bit integer
    return packed[:at] + SENT_AT_NS.to_bytes(8, "big") + packed[at + 8 :]


def main() -> None:
    """Write the golden file anew: only to add messages."""
    GOLDEN.write_text(json.dumps({kind_of(type(each)): payload_of(each).hex() for each in SAMPLES}, indent=1) + "\n")


if __name__ == "__main__":
    main()
