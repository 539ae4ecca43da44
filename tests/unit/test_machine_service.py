"""The executor's middle as a whole: commands in, journals of fake monitors, messages out."""

import asyncio
from pathlib import Path

from common.bus.events import Subscriber
from common.bus.memory import Memory
from common.messages.jobs import GetJob, JobAccepted, JobChanged, JobFound, JobSpec, RunJob, State
from common.messages.logs import LogRecords
from common.records import decode_all
from tests.unit.executor_fakes import FakePersist, node_settings, running_node
from tests.waiting import await_for


def test_a_job_runs_from_command_to_durable_end(tmp_path: Path) -> None:
    """RunJob → launched → RUNNING → live records → EXIT → COMPLETED, all of it delivered and the journal gone."""

    async def scenario() -> None:
        transport = Memory()
        persist = FakePersist(transport)
        storing = asyncio.create_task(persist.run())
        followed = Subscriber(transport)
        followed.subscribe("log.")
        followed.subscribe("job.")
        async with running_node(node_settings(tmp_path), transport) as node:
            accepted = await node.ask.request(RunJob(owner="ann", spec=JobSpec(command="true")), JobAccepted)
            job = accepted.job.id
            await await_for(lambda: job in node.host.monitors, what="the launch")
            monitor = node.host.monitors[job]
            monitor.start(pid=42)
            monitor.output(b"one\ntwo\n")
            await await_for(lambda: persist.last.get(job) == 2, what="two lines with persist")
            found = await node.ask.request(GetJob(job=job[:8], visible_owner="ann"), JobFound)
            assert (found.job.state, found.job.pid, found.job.last_sequence) == (State.RUNNING, 42, 2)
            monitor.output(b"three\n")
            monitor.exit()
            await await_for(lambda: not node.executor.layout.job_dir(job).exists(), what="the journal's removal")
            ended = (await node.ask.request(GetJob(job=job, visible_owner=None), JobFound)).job
            assert (ended.state, ended.exit_code, ended.last_sequence) == (State.COMPLETED, 0, 3)
            assert persist.output(job) == b"one\ntwo\nthree\n"
            assert persist.ended[job] == 3
            seen: list[State | bytes] = []
            messages = followed.messages()
            while not seen or seen[-1] is not State.COMPLETED:
                _, message = await anext(messages)
                if isinstance(message.body, JobChanged):
                    seen.append(message.body.job.state)
                elif isinstance(message.body, LogRecords):
                    seen += [bytes(r.payload) for r in decode_all(message.body.records) if r.lines]
            states = [item for item in seen if isinstance(item, State)]
            assert states == [State.STARTING, State.RUNNING, State.COMPLETED]
            assert [item for item in seen if isinstance(item, bytes)] == [b"one\ntwo\n", b"three\n"]
            assert node.host.cleaned == [job]
        storing.cancel()

    asyncio.run(scenario())
