"""Clients that are killed: the api keeps nothing of them, neither stream nor feed nor subscription."""

import asyncio
from pathlib import Path

import pytest
import yaml

from common.messages import topics
from tests.api_node import Node, running_node
from tests.fault.crowd_plan import Group, crowd
from tests.waiting import await_for

COUNT = 20


def client_config(node: Node, directory: Path) -> Path:
    """A file for the client programs, with a certificate of ann's."""
    identity = node.authority.client("ann", "user")
    entry = {
        "address": f"localhost:{node.api.port}",
        "cert": identity.cert.decode(),
        "key": identity.key.decode(),
        "ca": node.authority.pem.decode(),
    }
    file = directory / "rnx-config.yml"
    file.touch(mode=0o600)
    file.write_text(yaml.safe_dump({"version": "3.0", "nodes": {"default": entry}}))
    return file


@pytest.mark.requirement("S2.6")
@pytest.mark.threat("D22")
def test_nothing_is_left_of_clients_that_were_killed(tmp_path: Path) -> None:
    """Twenty followers share one subscription of the job; after kill -9 the streams and the subscription are gone."""

    async def scenario() -> None:
        async with running_node(tmp_path) as node:
            job = node.executor.add("ann").id
            node.executor.write(job, b"a line\n")
            with crowd(client_config(node, tmp_path), Group(job=job, count=COUNT)) as people:
                await await_for(lambda: node.api.capacity.streams == COUNT, timeout_s=30, what="the followers")
                await await_for(lambda: topics.log_topic(job) in node.api.hub.topics, what="the subscription")
                assert len(node.api.feeds) == 1
                people.process.kill()
                await await_for(lambda: node.api.capacity.streams == 0, what="the streams of the dead to end")
                await await_for(lambda: len(node.api.feeds) == 0, what="their feed to be let go")
                # A feed is given up first; its task lets the topic go when it runs the next time.
                await await_for(lambda: topics.log_topic(job) not in node.api.hub.topics, what="the topic to go")

    asyncio.run(scenario())
