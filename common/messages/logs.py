"""Messages about output and metrics: from the executor to followers and to persist, and persist's acknowledgements.

`records` fields hold whole records as in common/records.py, the bytes of the journal, never re-encoded.
"""

from common.identifiers import JobId
from common.messages.envelope import Body


class LogRecords(Body, frozen=True, kw_only=True):
    """Published on `log.<job>`: one or more whole records, in the order of the journal."""

    job: JobId
    records: bytes


class LogMarker(Body, frozen=True, kw_only=True):
    """Published on `log.<job>` for a SyncLog: all up to `last_sequence` was published before this."""

    job: JobId
    marker: str
    last_sequence: int


class StoreRecords(Body, frozen=True, kw_only=True):
    """To persist: whole records of a job. Go-back-N over a lossy channel.

    The sender numbers its batches of a job from 0 within an `epoch`, and takes a new, higher epoch whenever it goes
    back to its last acknowledged record. The receiver takes batch 0 of a newer epoch or the next batch of the
    present one; anything else it drops and answers with Resend. Repeats of stored sequences are dropped there.
    """

    job: JobId
    epoch: int
    batch: int
    records: bytes


class EndOfJob(Body, frozen=True, kw_only=True):
    """To persist: the job ended and `last_sequence` was its last; counts as a batch of its epoch.

    Whose the job was and when it ended (Unix nanoseconds) is what retention goes by; "" and 0: an older executor.
    """

    job: JobId
    epoch: int
    batch: int
    last_sequence: int
    owner: str = ""
    ended_at_ns: int = 0


class StoreMetric(Body, frozen=True, kw_only=True):
    """To persist, and published on `metrics.<job>`: one sample. Not acknowledged."""

    job: JobId
    time_ns: int
    cpu_percent: float
    memory_bytes: int
    io_read_bytes: int = 0
    io_write_bytes: int = 0
    io_read_ops: int = 0
    io_write_ops: int = 0
    network_rx_bytes: int = 0
    network_tx_bytes: int = 0
    pids: int = 0
    cpu_pressure: float = 0.0  # percent of the last 10 s in which some task of the job waited for it: PSI "some avg10"
    memory_pressure: float = 0.0
    io_pressure: float = 0.0


class Stored(Body, frozen=True, kw_only=True):
    """From persist: everything of the job up to `last_sequence` is durable. `ended`: EndOfJob was handled too."""

    job: JobId
    epoch: int
    last_sequence: int
    ended: bool = False


class Resend(Body, frozen=True, kw_only=True):
    """From persist: a batch of this epoch is missing; go back to what was acknowledged last, in a new epoch."""

    job: JobId
    epoch: int


class PersistStarted(Body, frozen=True, kw_only=True):
    """From persist when it begins to receive: whatever was not acknowledged must be sent again."""

    instance: str
