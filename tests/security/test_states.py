"""States of jobs × operations × roles: each has one fixed code, with the real api and executor (`middle.py`)."""

import asyncio
import time
from itertools import product
from pathlib import Path
from typing import Final

import grpc
import pytest

from common.identifiers import JobId
from common.messages import jobs
from common.messages.jobs import State
from tests.security.front_door import JOBS, PERSIST, REQUESTS, outcome
from tests.security.middle import Middle, running_middle

Code = grpc.StatusCode
OK, LATE, DENIED, NONE = Code.OK, Code.FAILED_PRECONDITION, Code.PERMISSION_DENIED, Code.NOT_FOUND
STOP, CANCEL, DELETE, DATA = JOBS + "StopJob", JOBS + "CancelJob", JOBS + "DeleteJob", PERSIST + "DeleteJobData"

ENDED: Final = {STOP: LATE, CANCEL: LATE, DELETE: OK, DATA: OK}
TABLE: Final[dict[State, dict[str, Code]]] = {
    State.SCHEDULED: {STOP: OK, CANCEL: OK, DELETE: LATE, DATA: LATE},
    State.RUNNING: {STOP: OK, CANCEL: LATE, DELETE: LATE, DATA: LATE},
    State.COMPLETED: ENDED,
    State.FAILED: ENDED,
    State.LOST: ENDED,
    State.CANCELED: ENDED,
}
"""What who may is answered. STARTING and PENDING last no longer than a launch: tests/unit/test_machine.py has them."""

COMMANDS: Final = {State.COMPLETED: "true", State.FAILED: "false", State.LOST: "die", State.RUNNING: "sleep"}
MAY: Final = (("admin", "ann"), ("admin", "bob"), ("writer", "ann"), ("writer", "bob"), ("user", "ann"))
MAY_NOT: Final = (("user", "bob", NONE), ("reader", "ann", DENIED), ("reader", "bob", DENIED))


async def job_in(middle: Middle, state: State, owner: str) -> JobId:
    """A fresh job in this state."""
    if state in COMMANDS:
        return await middle.job_in(state, owner, jobs.JobSpec(command=COMMANDS[state]))
    spec = jobs.JobSpec(command="true", start_at_ns=time.time_ns() + 3600 * 10**9)
    job = await middle.job_in(State.SCHEDULED, owner, spec)
    if state is State.CANCELED:
        await middle.api._executor.request(jobs.CancelJob(job=job), jobs.JobFound)
    return job


@pytest.mark.threat("D30")
@pytest.mark.requirement("S4.17")
def test_every_state_and_operation_and_role_has_its_code(tmp_path: Path) -> None:
    """OK or FAILED_PRECONDITION by the state for those who may; for others the state shows in nothing."""

    async def scenario() -> None:
        async with running_middle(tmp_path) as middle:
            channels = {
                role: middle.channel(middle.authority.client("ann", role))
                for role in ("admin", "writer", "user", "reader")
            }
            expected = [
                *(
                    (state, method, role, owner, TABLE[state][method])
                    for state, method, (role, owner) in product(TABLE, ENDED, MAY)
                ),
                *(
                    (state, method, role, owner, code)
                    for state, method, (role, owner, code) in product(TABLE, ENDED, MAY_NOT)
                ),
            ]
            wrong = []
            for state, method, role, owner, code in expected:
                job = await job_in(middle, state, owner)
                got = await outcome(channels[role], method, REQUESTS[method](job).SerializeToString())
                if got is not code:
                    wrong.append((state, method, role, owner, got, code))
            assert wrong == []
            for channel in channels.values():
                await channel.close(None)

    asyncio.run(scenario())
