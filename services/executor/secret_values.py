"""The secret variables of jobs between submission and start: sealed in the database, gone when the job has them.

Here: which job has which values, and until when. Not here: sealing (`common/vault.py`), rows (`job_store.py`).
"""

from collections.abc import Mapping

from common.errors import JobletError, Reason
from common.identifiers import JobId
from common.vault import Vault
from services.executor.events import Job
from services.executor.job_store import JobStore
from services.executor.writer import RecordWriter


class SecretValues:
    """Of all jobs that have not begun."""

    def __init__(self, vault: Vault, store: JobStore, writer: RecordWriter) -> None:
        self._vault = vault
        self._store = store
        self._writer = writer

    def seal(self, job: JobId, values: Mapping[str, str]) -> bytes:
        """What is stored with the record of a new job. Raises JobletError when there can be no key."""
        return self._vault.seal(job, values)

    def of(self, job: Job) -> dict[str, str]:
        """The values for a launch. Raises JobletError(DATA_LOSS): a job never runs without its secrets."""
        if not job.record.spec.secret_names:
            return {}
        sealed = self._store.sealed_secrets(job.record.id)
        if not sealed:
            raise _lost("they are not in the database any more")
        try:
            return self._vault.unseal(job.record.id, sealed)
        except JobletError as cause:
            raise _lost(cause.message) from cause

    def drop(self, job: Job) -> None:
        """The job has begun, or never will."""
        if job.record.spec.secret_names:
            self._writer.remove_secrets(job.record.id)

    def drop_stale(self) -> None:
        """After a restart: those of jobs that the process before us saw begin or end, and did not come to."""
        for job in self._store.stale_secrets():
            self._writer.remove_secrets(job)


def _lost(why: str) -> JobletError:
    what = f"its secret variables are lost: {why}"
    return JobletError(Reason.DATA_LOSS, what, detail="submit the job again")
