"""Every setting of the one configuration file, with its default. Names on the right of `rename` are Joblet's.

The file is shared by all services (requirements S0.31–S0.39): `version`, `server`, `logging` and `security` for all,
`persist` for the persist service, `joblet` for everything else. Sizes are bytes, times as their names end.
A field that is new here is written in snake case.
"""

from typing import Final, Literal

import msgspec

VERSION: Final = "3.0"
MARKS: Final = {"1.3.6.1.4.1.12345.1.1": "admin", "1.3.6.1.4.1.12345.1.2": "reader"}
DEFAULT_BASE_DIR: Final = "/opt/joblet"


class Section(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Base of every section: unknown keys are an error."""


class Server(Section, frozen=True, kw_only=True):
    """Where clients reach the node, and its name."""

    node_id: str = msgspec.field(name="nodeId", default="")  # empty: the host name
    address: str = "0.0.0.0"  # noqa: S104  # the documented default; mutual TLS guards it
    port: int = 50051


class Logging(Section, frozen=True, kw_only=True):
    """The services' own logs, not those of jobs."""

    level: Literal["DEBUG", "INFO", "WARNING", "WARN", "ERROR"] = "INFO"
    format: Literal["text", "json"] = "text"
    output: str = "stdout"  # or "stderr", or a path


class Identity(Section, frozen=True, kw_only=True):
    """Where in a client certificate its roles stand; what is found in several places adds up."""

    organization: bool = True  # subject O values
    extension: bool = True  # 1.2.840.10070.8.1, UTF8String: one role, or several with commas
    marks: dict[str, str] = msgspec.field(default_factory=lambda: dict(MARKS))  # extensions whose presence is a role
    roles: dict[str, str] = {}  # further words, in O and in the extension, and the role that each means


class Security(Section, frozen=True, kw_only=True):
    """PEM text or a path, each. Empty: `{base}/certs/server.crt`, `server.key`, `ca.crt`; `ca.crl` if it is there.

    Files are read again when they change; PEM text in the configuration is read at start.
    """

    server_cert: str = msgspec.field(name="serverCert", default="")
    server_key: str = msgspec.field(name="serverKey", default="")
    ca_cert: str = msgspec.field(name="caCert", default="")
    crl: str = ""
    identity: Identity = Identity()
    reload_ms: int = 1000  # how often the files are looked at
    expiry_warning_days: int = 14


class Users(Section, frozen=True, kw_only=True):
    """Whom the unprivileged services become. A name that does not exist: an unused system uid."""

    api: str = "joblet-api"
    persist: str = "joblet"
    group: str = "joblet"


class Grpc(Section, frozen=True, kw_only=True):
    """Limits of the front door (requirements S2.9–S2.14)."""

    keepalive_time_ms: int = 600_000
    keepalive_timeout_ms: int = 20_000
    ping_interval_ms_min: int = 10_000  # of a client's pings; who pings more often is sent away
    connection_idle_ms: int = 1_800_000
    connection_age_ms: int = 3_600_000
    connection_age_grace_ms: int = 3_600_000
    handshake_timeout_ms: int = 5_000
    receive_message_bytes_max: int = 4 * 2**20
    send_message_bytes_max: int = 8 * 2**20
    metadata_bytes_max: int = 16 * 2**10
    concurrent_streams_max: int = 100  # of one connection
    active_streams_max: int = 1000  # log, watch and metric streams together; beyond: "Max capacity reached"
    stream_window_bytes: int = 1 * 2**20  # of what a client sends; its connection begins with as much
    follower_queue_bytes: int = (
        32 * 2**20
    )  # waiting for one client (followers of a job share it); beyond, it catches up


class Uploads(Section, frozen=True, kw_only=True):
    """Bounds of one upload, and of what is staged together."""

    bytes_max: int = 4 * 2**30
    entries_max: int = 10_000
    duration_ms_max: int = 600_000
    staged_bytes_max: int = 16 * 2**30
    unused_ms_max: int = 600_000  # an upload that no job took by then is removed


class Journal(Section, frozen=True, kw_only=True):
    """The hot tier of a job's output."""

    bytes_max: int = 2**30  # of one job, not yet acknowledged
    on_full: Literal["block", "drop"] = "block"
    unacknowledged_bytes_max: int = 8 * 2**20  # of one job, on the way to persist
    unacknowledged_total_bytes_max: int = 64 * 2**20
    silence_ms: int = 100  # after which an unfinished line is passed on as PARTIAL
    reserve_bytes: int = 64 * 2**20  # with less room on the journals' disk no new job is taken


class Jobs(Section, frozen=True, kw_only=True):
    """Defaults and bounds of jobs."""

    work_bytes: int = 2**20
    work_bytes_max: int = 16 * 2**30
    tmp_bytes: int = 64 * 2**20
    pids: int = 4096
    grace_ms: int = 10_000
    running_max: int = 1000  # at once; more wait as PENDING
    queued_max: int = 10_000  # waiting, SCHEDULED ones included; more are refused
    uid_first: int = 100_000  # each owner has a range of 65,536 from here
    read_only_paths: tuple[str, ...] = ("/usr", "/bin", "/lib", "/lib32", "/lib64", "/sbin")
    metrics_interval_ms: int = 5_000
    spares: int = 2  # sandboxes that are prepared before anyone asks for a job; 0: none
    rootfs: str = "host"  # what a job's root is made of: "host" (read_only_paths), "busybox", or a directory
    network: Literal["none", "isolated", "bridge"] = "none"  # of a job that asks for none in particular


class Volumes(Section, frozen=True, kw_only=True):
    """Named storage for jobs."""

    directory: str = ""  # empty: /var/lib/joblet/volumes, or {base}/volumes of another base directory than the default
    quota: Literal["auto", "project", "image"] = "auto"  # how sizes are enforced; auto: project quota if possible
    size_bytes_max: int = 2**40  # of one volume
    count_max: int = 1000  # on this node
    owner_count_max: int = 100
    owner_bytes_max: int | None = None  # sizes of one owner's volumes and snapshots together
    memory_share_percent: int = 50  # of the machine's memory: sizes of all memory volumes together
    memory_idle_ms: int = 86_400_000  # a memory volume that nobody used for so long is removed
    snapshots_max: int = 32  # of one volume
    idle_mounts_max: int = 16  # volumes that stay mounted although nobody uses them, those used last
    idle_mount_ms: int = 60_000  # and for how long
    interval_ms: int = 30_000  # between two rounds: measuring, removing what is idle
    reserve_bytes: int = 64 * 2**20  # to keep free on the file system that holds the volumes


class Networks(Section, frozen=True, kw_only=True):
    """Networks of jobs that have one. Addresses are IPv4; jobs have no IPv6 but on their loopback."""

    bridge_subnet: str = "10.88.0.0/16"  # shared by all jobs of mode bridge, which cannot reach each other
    isolated_subnet: str = "10.89.0.0/16"  # of each owner's own bridge, without a way out
    dns: tuple[str, ...] = ()  # name servers of mode bridge; empty: the host's, as far as a job can reach them
    blocked: tuple[str, ...] = ("169.254.0.0/16", "fd00:ec2::254/128")  # closed to jobs: cloud metadata


class LimitValues(Section, frozen=True, kw_only=True):
    """Limits by the names, and in the units, of common/messages/jobs.py, Limits. None: not set."""

    cpu_percent: int | None = None
    cpu_weight: int | None = None
    cpu_cores: str | None = None
    memory_bytes: int | None = None
    pids: int | None = None
    io_weight: int | None = None
    read_bytes_per_s: int | None = None
    write_bytes_per_s: int | None = None
    read_ops_per_s: int | None = None
    write_ops_per_s: int | None = None
    open_files: int | None = None
    file_bytes: int | None = None
    timeout_ms: int | None = None


class LimitBounds(Section, frozen=True, kw_only=True):
    """What a job gets that does not ask, and the most that it may ask for."""

    default: LimitValues = LimitValues()
    max: LimitValues = LimitValues()


class RoleLimits(Section, frozen=True, kw_only=True):
    """What differs for the roles that may run jobs; laid over the bounds of everybody, field by field."""

    admin: LimitBounds = LimitBounds()
    writer: LimitBounds = LimitBounds()
    user: LimitBounds = LimitBounds()


class Quota(Section, frozen=True, kw_only=True):
    """How much one owner may use at once. None: no bound but the node's."""

    running_jobs: int | None = None  # more wait
    queued_jobs: int | None = None  # waiting, SCHEDULED ones included
    calls_per_s: int | None = None  # of all methods; a second's worth may come at once
    streams: int | None = None  # log, watch and metric streams
    upload_bytes: int | None = None  # staged and not yet taken by a job


class RoleQuotas(Section, frozen=True, kw_only=True):
    """What differs for owners of a role; of several roles the most generous value counts."""

    admin: Quota = Quota()
    writer: Quota = Quota()
    user: Quota = Quota()
    reader: Quota = Quota()


class Quotas(Quota, frozen=True, kw_only=True):
    """Bounds of everybody, and of roles: `services/api/quotas.py` has the rules."""

    roles: RoleQuotas = RoleQuotas()


class AuditLog(Section, frozen=True, kw_only=True):
    """The files of the audit log."""

    file_bytes_max: int = 64 * 2**20  # then a new one is begun
    files_kept: int = 8


class LimitPolicy(LimitBounds, frozen=True, kw_only=True):
    """Bounds of everybody, and of roles: `services/api/limit_policy.py` has the rules."""

    roles: RoleLimits = RoleLimits()


class Joblet(Section, frozen=True, kw_only=True):
    """The node as a whole."""

    base_dir: str = DEFAULT_BASE_DIR
    users: Users = Users()
    grpc: Grpc = Grpc()
    uploads: Uploads = Uploads()
    journal: Journal = Journal()
    jobs: Jobs = Jobs()
    limits: LimitPolicy = LimitPolicy()
    quotas: Quotas = Quotas()
    audit: AuditLog = AuditLog()
    networks: Networks = Networks()
    volumes: Volumes = Volumes()
    cgroup_parent: str = "joblet"  # name of the group below the cgroup root that holds the jobs' groups


class PersistServer(Section, frozen=True, kw_only=True):
    """The query socket."""

    grpc_socket: str = ""  # empty: {base}/run/persist-grpc.sock
    max_connections: int = 500


class PersistIpc(Section, frozen=True, kw_only=True):
    """The write socket."""

    socket: str = ""  # empty: {base}/run/persist-ipc.sock
    max_connections: int = 10
    max_message_size: int = 134_217_728


class LocalLogs(Section, frozen=True, kw_only=True):
    """Where logs are stored locally."""

    directory: str = ""  # empty: {base}/logs
    format: Literal["jsonl.gz"] = "jsonl.gz"


class LocalMetrics(Section, frozen=True, kw_only=True):
    """Where metrics are stored locally."""

    directory: str = ""  # empty: {base}/metrics
    format: Literal["jsonl.gz"] = "jsonl.gz"


class Retention(Section, frozen=True, kw_only=True):
    """What is removed of ended jobs' logs and metrics, oldest first; of running jobs never. 0: no such rule."""

    age_days: int = 0  # since the job ended
    job_bytes: int = 0  # of one job: its oldest output goes
    owner_bytes: int = 0  # of all jobs of one owner
    total_bytes: int = 0
    free_bytes: int = 0  # to keep free on the file system that holds the logs
    interval_ms: int = 300_000


class Local(Section, frozen=True, kw_only=True):
    """The local store: gzip JSON lines."""

    logs: LocalLogs = LocalLogs()
    metrics: LocalMetrics = LocalMetrics()
    durability: Literal["flush", "fsync"] = "fsync"
    compression_level: int = 1  # of isal: 0 fastest to 3 smallest
    flush_bytes: int = 256 * 2**10
    flush_ms: int = 200
    retention: Retention = Retention()


class CloudWatch(Section, frozen=True, kw_only=True):
    """Requirements S0.15–S0.28."""

    region: str = ""
    log_group_prefix: str = "/joblet"
    log_stream_prefix: str = ""  # deprecated: accepted, ignored, warned about
    metric_namespace: str = "Joblet/Jobs"
    metric_dimensions: dict[str, str] = {}
    log_batch_size: int = 100
    metric_batch_size: int = 20


class Storage(Section, frozen=True, kw_only=True):
    """Where history goes."""

    type: Literal["local", "cloudwatch", "s3"] = "local"
    base_dir: str = ""  # empty: joblet.base_dir
    local: Local = Local()
    cloudwatch: CloudWatch = CloudWatch()


class Persist(Section, frozen=True, kw_only=True):
    """The persist service."""

    enabled: bool = True
    server: PersistServer = PersistServer()
    ipc: PersistIpc = PersistIpc()
    storage: Storage = Storage()


class Settings(Section, frozen=True, kw_only=True):
    """The whole file."""

    version: str = VERSION
    server: Server = Server()
    logging: Logging = Logging()
    security: Security = Security()
    joblet: Joblet = Joblet()
    persist: Persist = Persist()
