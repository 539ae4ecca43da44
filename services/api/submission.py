"""From what a caller wants to run to a job of his own: the one way, whichever service he asks.

Belongs here: everything that holds for a job whoever's method it came by (his roles' limits and networks, his uploads).
Does not belong here: the shape of fields (`requests.py`), and the answers (`job_service.py`, `worker_service.py`).
"""

from collections.abc import Callable

import msgspec

from common.bus.requests import Requester
from common.identifiers import parse_key
from common.messages import jobs
from proto.joblet.v1 import job_pb2
from services.api import requests
from services.api.calls import current
from services.api.limit_policy import Policy, applied, check_network
from services.api.quotas import Quota, Quotas
from services.api.uploads.registry import Registry


class Submission:
    """Starts and plans jobs for the present caller. Both raise JobletError."""

    def __init__(self, *, executor: Requester, uploads: Registry, policy: Policy, quotas: Quotas) -> None:
        self._executor = executor
        self._uploads = uploads
        self._policy = policy
        self._quotas = quotas

    async def run(self, message: job_pb2.JobSpec, *, idempotency_key: str = "") -> jobs.JobAccepted:
        """Start a job. It is the call's job from then on."""
        call = current()
        owner = call.principal.name
        key = parse_key(idempotency_key, "idempotency key") if idempotency_key else ""
        with self._uploads.lend(owner, key) as loan:
            accepted = await self._executor.request(
                jobs.RunJob(
                    owner=owner,
                    spec=self._spec(message, loan.take),
                    idempotency_key=key,
                    secrets=requests.secrets(message),
                    running_max=self._quotas.most(Quota.RUNNING_JOBS, call.principal.roles),
                    queued_max=self._quotas.most(Quota.QUEUED_JOBS, call.principal.roles),
                ),
                jobs.JobAccepted,
            )
            loan.keep(accepted.job.spec.uploads)
        call.object = accepted.job.id
        return accepted

    async def plan(self, message: job_pb2.JobSpec) -> jobs.JobPlan:
        """Tell how a job would be launched. Uploads stay where they are."""
        owner = current().principal.name
        with self._uploads.lend(owner, "") as loan:
            spec = self._spec(message, loan.take)
        return await self._executor.request(jobs.PlanJob(owner=owner, spec=spec), jobs.JobPlan)

    def _spec(self, message: job_pb2.JobSpec, upload: Callable[[str], jobs.Upload]) -> jobs.JobSpec:
        """What the caller asks for, as far as his roles may."""
        policy = self._policy
        spec = requests.job_spec(
            message, upload, network=policy.network, on_full=policy.on_full, grace_ms=policy.grace_ms
        )
        roles = current().principal.roles
        check_network(spec.network, roles)
        return msgspec.structs.replace(spec, limits=applied(spec.limits, roles, policy))
