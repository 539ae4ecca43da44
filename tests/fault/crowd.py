"""A crowd of followers in one process: `python -m tests.fault.crowd CONFIG`, with a Plan as JSON on stdin.

Belongs here: following jobs over gRPC as often as the plan says, each follower in its own manner, and telling what each
one got. Does not belong here: judging. It is a process of its own so that no test process holds gRPC's threads, and so
that a test can kill all of these clients at once.

On stdout, each a line of JSON: `Opened` when every follower that begins at once has had its first message, `Told` when
every follower that reads has ended. Then the process keeps its other streams open until its stdin ends.
"""

import asyncio
import hashlib
import sys
from pathlib import Path
from typing import Final

import msgspec

from cli.client.channel import CHANNEL_ARGUMENTS, prepare_environment

prepare_environment()

import grpc  # noqa: E402  # TLS 1.3 only holds when the environment was prepared before
from grpc import aio  # noqa: E402

from cli.client.contexts import load_context  # noqa: E402
from proto.joblet.v1 import job_pb2, job_pb2_grpc, node_pb2, node_pb2_grpc, persist_pb2  # noqa: E402
from tests.fault.crowd_plan import Group, Heard, Opened, Plan, Told  # noqa: E402

STREAMS_OF_A_CONNECTION: Final = 100
WINDOW_BYTES: Final = 65536
"""So little is taken in for a follower that does not read: then it is the node that has to bear with him."""
OPEN_TIMEOUT_S: Final = 300.0


class Ear:
    """Takes in the chunks of one stream."""

    def __init__(self) -> None:
        self.entries = 0
        self._first = 0
        self._last = 0
        self._jumps = 0
        self._gaps: list[str] = []
        self._merged = hashlib.sha256()
        self._streams = {persist_pb2.STDOUT: hashlib.sha256(), persist_pb2.STDERR: hashlib.sha256()}

    def take(self, chunk: job_pb2.LogChunk) -> None:
        """One more chunk."""
        if self.entries == 0:
            self._first = chunk.first_sequence
        elif chunk.first_sequence != self._last + 1:
            self._jumps += 1
        self.entries += chunk.lines
        self._last = chunk.first_sequence + chunk.lines - 1
        if chunk.HasField("gap"):
            self._gaps.append(chunk.gap.reason)
            return
        self._merged.update(chunk.data)
        self._streams[chunk.stream].update(chunk.data)

    def heard(self, group: int, ended: str) -> Heard:
        """All that was taken in."""
        return Heard(
            group=group,
            entries=self.entries,
            first=self._first,
            last=self._last,
            jumps=self._jumps,
            gaps=tuple(self._gaps),
            merged=self._merged.hexdigest(),
            stdout=self._streams[persist_pb2.STDOUT].hexdigest(),
            stderr=self._streams[persist_pb2.STDERR].hexdigest(),
            ended=ended,
        )


class Crowd:
    """All followers of a plan, and how far the first of them is."""

    def __init__(self, plan: Plan, channels: list[aio.Channel]) -> None:
        self._plan = plan
        self._stubs: list[job_pb2_grpc.JobServiceAsyncStub] = [
            job_pb2_grpc.JobServiceStub(channel) for channel in channels
        ]
        self._node: node_pb2_grpc.NodeServiceAsyncStub = node_pb2_grpc.NodeServiceStub(channels[0])
        self._progress = asyncio.Condition()
        self._pilot = Ear()
        self._opened = 0

    async def run(self) -> None:
        """Follow, tell, and hold what is open until stdin ends."""
        kinds = [(number, group) for number, group in enumerate(self._plan.groups) for _ in range(group.count)]
        at_once = sum(group.join_at == 0 for _, group in kinds)
        followers = [  # each kind on every connection: those who do not read sit between those who do
            asyncio.create_task(
                self._follow(number, group, self._stubs[index % len(self._stubs)], Ear() if index else self._pilot)
            )
            for index, (number, group) in enumerate(kinds)
        ]
        async with asyncio.timeout(OPEN_TIMEOUT_S), self._progress:
            await self._progress.wait_for(lambda: self._opened >= at_once)
        tell(Opened(streams=self._opened))
        heard = await asyncio.gather(*(task for task, (_, group) in zip(followers, kinds, strict=True) if group.reads))
        info = await self._node.GetInfo(node_pb2.GetInfoRequest())
        tell(Told(heard=tuple(each for each in heard if each is not None), counters=dict(info.counters)))
        await asyncio.get_running_loop().run_in_executor(None, sys.stdin.read)
        for task in followers:
            task.cancel()
        await asyncio.gather(*followers, return_exceptions=True)

    async def _follow(
        self, number: int, group: Group, stub: "job_pb2_grpc.JobServiceAsyncStub", ear: Ear
    ) -> Heard | None:
        """One stream to its end; None for one that does not read."""
        async with self._progress:
            await self._progress.wait_for(lambda: self._pilot.entries >= group.join_at)
        call = stub.StreamLogs(request_of(group), wait_for_ready=True)  # as many handshakes at once take their time
        ended = "cut off"
        begun = False
        try:
            async for response in call:
                for chunk in response.chunks:
                    ear.take(chunk)
                if response.HasField("ended"):
                    ended = job_pb2.JobState.Name(response.ended.state)
                if not begun or ear is self._pilot:
                    await self._tell_progress(opened=0 if begun else 1)
                    begun = True
                if not group.reads:
                    await asyncio.Event().wait()
                if group.pause_ms:
                    await asyncio.sleep(group.pause_ms / 1000)
        except aio.AioRpcError as error:
            ended = f"{error.code().name}: {error.details()}"
        finally:
            call.cancel()
        if not begun:
            await self._tell_progress(opened=1)
        return ear.heard(number, ended)

    async def _tell_progress(self, *, opened: int) -> None:
        async with self._progress:
            self._opened += opened
            self._progress.notify_all()


def request_of(group: Group) -> job_pb2.StreamLogsRequest:
    """What a follower of this kind asks for."""
    return job_pb2.StreamLogsRequest(
        job_id=group.job,
        stream=group.stream or None,
        from_sequence=group.from_sequence,
        tail=group.tail,
        filter=group.filter,
        regex=group.regex,
        limit=group.limit,
        follow=group.follow,
    )


def tell(message: Opened | Told) -> None:
    """One line on stdout."""
    sys.stdout.buffer.write(msgspec.json.encode(message) + b"\n")
    sys.stdout.buffer.flush()


async def follow(config: Path, plan: Plan) -> None:
    """Open the connections, each with a limited number of streams, and follow."""
    context = load_context(config, "default")
    credentials = grpc.ssl_channel_credentials(context.ca, context.key, context.cert)
    options = (
        *CHANNEL_ARGUMENTS,
        ("grpc.use_local_subchannel_pool", 1),  # or all channels to one address are one connection
        ("grpc.http2.lookahead_bytes", WINDOW_BYTES),
        ("grpc.http2.bdp_probe", 0),
    )
    streams = sum(group.count for group in plan.groups)
    channels = [
        aio.secure_channel(context.address, credentials, options=options)
        for _ in range(-(-streams // STREAMS_OF_A_CONNECTION))
    ]
    try:
        await Crowd(plan, channels).run()
    finally:
        for channel in channels:
            await channel.close(None)


def main() -> None:
    """Read the plan, a line, and do it."""
    plan = msgspec.json.decode(sys.stdin.readline(), type=Plan)
    asyncio.run(follow(Path(sys.argv[1]), plan))


if __name__ == "__main__":
    main()
