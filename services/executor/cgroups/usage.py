"""From counters that only grow to the CPU share between two samples. No file is read here."""

from common.identifiers import JobId
from common.messages.logs import StoreMetric


class CpuMeter:
    """Remembers what each job had used when it was sampled last."""

    def __init__(self) -> None:
        self._seen: dict[JobId, tuple[int, int]] = {}

    def percent(self, job: JobId, used_us: int, *, previous: StoreMetric | None, now_ns: int) -> float:
        """Percent of one core between `previous` and now; see CgroupDriver.sample."""
        seen = self._seen.get(job)
        self._seen[job] = (now_ns, used_us)
        if previous is None:
            return 0.0
        used_before_us = seen[1] if seen is not None and seen[0] == previous.time_ns else 0
        elapsed_ns = now_ns - previous.time_ns
        if elapsed_ns <= 0:  # the wall clock was set back
            return 0.0
        return round(max(0, used_us - used_before_us) * 1000 / elapsed_ns * 100, 3)

    def forget(self, job: JobId) -> None:
        """The job has no groups any more."""
        self._seen.pop(job, None)
