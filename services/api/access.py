"""Whether a caller may touch one job. What he may not see does not exist for him.

Belongs here: from the reference in a request to the job's record, or the refusal. Not here: roles (`permissions.py`).
"""

from common.bus.requests import Requester
from common.errors import JobletError, Reason, not_found
from common.identifiers import parse_job_reference
from common.messages import jobs
from services.api.calls import current
from services.api.permissions import Permission, Scope


def no_such_job() -> JobletError:
    """The one refusal for a job that does not exist and for one that the caller may not see.

    It does not repeat the id, so the two cannot be told apart by a single byte.
    """
    return not_found("no such job", "rnx job list --all shows the jobs that you may see")


class Access:
    """Looks jobs up at the executor, with the eyes of the present caller."""

    def __init__(self, executor: Requester) -> None:
        self._executor = executor

    async def job(self, reference: str) -> jobs.JobRecord:
        """The record of a job: see `found`."""
        return (await self.found(reference)).job

    async def controlled(self, reference: str) -> jobs.JobRecord:
        """The record of a job that is to be changed by a method about something else, which stays the call's object.

        Raises JobletError: see `found`.
        """
        record = (await self.look_up(parse_job_reference(reference), current().visible_owner)).job
        _require(record, Permission.CONTROL)
        return record

    async def found(self, reference: str) -> jobs.JobFound:
        """The job named by its id or a unique prefix, when the caller may do with it what his method does.

        Raises JobletError: INVALID for a malformed reference, NOT_FOUND for a job he may not see, DENIED for one that
        he may see but not use so, UNAVAILABLE when the executor does not answer.
        """
        call = current()
        call.object = parse_job_reference(reference)
        found = await self.look_up(call.object, call.visible_owner)
        record = found.job
        call.object = record.id
        _require(record, call.rule.permission)
        return found

    async def look_up(self, reference: str, visible_owner: str | None = None) -> jobs.JobFound:
        """The job as it is now, among those of `visible_owner` (None: all). Raises JobletError."""
        try:
            return await self._executor.request(jobs.GetJob(job=reference, visible_owner=visible_owner), jobs.JobFound)
        except JobletError as error:
            if error.reason is Reason.NOT_FOUND:
                raise no_such_job() from error
            raise


def _require(record: jobs.JobRecord, permission: Permission) -> None:
    call = current()
    if call.scope(permission) is not Scope.ANY and record.owner != call.principal.name:
        raise JobletError(
            Reason.DENIED,
            f"{call.principal.name} may not {permission} of others",
            detail="ask the job's owner, or an admin or writer",
        )
