"""Samples of resource usage on their way to the store, and their JSON lines.

    {"timestamp":ns,"cpu_percent":…,"memory_bytes":…,"io_read_bytes":…,…}

Samples are not acknowledged: what waits here when the process is killed is lost, at most SAMPLES_MAX of a job or
AGE_MS of them. Added on the event loop, flushed in a worker thread. Queries are metrics.py's.
"""

import math
import threading
from typing import Final

import msgspec
import structlog

from common.identifiers import JobId
from common.messages.logs import StoreMetric
from services.persist.lines import INTEGER_MAX
from services.persist.store import Store

log = structlog.get_logger(__name__)

SAMPLES_MAX: Final = 12
AGE_MS: Final = 5_000
WAITING_MAX: Final = 20_000
"""Of all jobs together; beyond, the newest are dropped and counted."""


class Sample(msgspec.Struct, frozen=True, kw_only=True):
    """One JSON line. Units as in common/messages/logs.py, StoreMetric."""

    timestamp: int
    cpu_percent: float
    memory_bytes: int
    io_read_bytes: int = 0
    io_write_bytes: int = 0
    io_read_ops: int = 0
    io_write_ops: int = 0
    network_rx_bytes: int = 0
    network_tx_bytes: int = 0
    pids: int = 0
    cpu_pressure: float = 0.0
    memory_pressure: float = 0.0
    io_pressure: float = 0.0


_encoder: Final = msgspec.json.Encoder()
_decoder: Final = msgspec.json.Decoder(Sample)


def decode(text: bytes) -> list[Sample]:
    """The samples in a member's text. Raises `msgspec.DecodeError` when it is not ours."""
    return _decoder.decode_lines(text)


class Samples:
    """What waits to be stored, by job."""

    def __init__(self, store: Store) -> None:
        self._store = store
        self._lock = threading.Lock()
        self._by_job: dict[JobId, list[Sample]] = {}
        self._since_ms: dict[JobId, int] = {}
        self.waiting = 0
        self.dropped = 0

    def add(self, metric: StoreMetric, now_ms: int) -> None:
        """Take one sample. One that is out of range is dropped and counted."""
        fields = msgspec.structs.asdict(metric)
        job, time_ns = JobId(fields.pop("job")), fields.pop("time_ns")
        sane = all(math.isfinite(number) and 0 <= number <= INTEGER_MAX for number in (time_ns, *fields.values()))
        if self.waiting >= WAITING_MAX or not sane:
            self.dropped += 1
            if self.dropped.bit_count() == 1:
                log.warning("sample dropped", job=job, times=self.dropped)
            return
        with self._lock:
            self._by_job.setdefault(job, []).append(Sample(timestamp=time_ns, **fields))
            self._since_ms.setdefault(job, now_ms)
            self.waiting += 1

    def flush_due(self, now_ms: int) -> None:
        """Store what is due."""
        with self._lock:
            jobs = [job for job in self._by_job if self._is_due(job, now_ms)]
        for job in jobs:
            self.flush(job)

    def flush_all(self) -> None:
        """Store everything."""
        with self._lock:
            jobs = list(self._by_job)
        for job in jobs:
            self.flush(job)

    def flush(self, job: JobId) -> None:
        """Store what waits of one job; when that fails it is lost, and the log says so."""
        samples = self._take(job)
        if not samples:
            return
        try:
            self._store.write_metrics(job, _encoder.encode_lines(samples), [sample.timestamp for sample in samples])
        except OSError as cause:
            self.dropped += len(samples)
            log.warning("samples lost", job=job, samples=len(samples), why=str(cause))

    def forget(self, job: JobId) -> None:
        """Drop what waits of one job."""
        self._take(job)

    def _take(self, job: JobId) -> list[Sample]:
        with self._lock:
            samples = self._by_job.pop(job, [])
            self._since_ms.pop(job, None)
            self.waiting -= len(samples)
        return samples

    def _is_due(self, job: JobId, now_ms: int) -> bool:
        return len(self._by_job[job]) >= SAMPLES_MAX or now_ms - self._since_ms[job] >= AGE_MS
