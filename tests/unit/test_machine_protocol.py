"""docs/protocol.md says what the code does."""

import re
from pathlib import Path

from common.messages.jobs import State
from common.messages.topics import ENDPOINTS, Pattern

PROTOCOL = (Path(__file__).parents[2] / "docs" / "protocol.md").read_text(encoding="utf-8")


def test_the_documented_endpoints_are_those_of_the_table() -> None:
    """File, pattern, who binds and connects, bytes and queue: row by row."""
    documented = re.findall(
        r"^\| (\S+\.sock) \| (\w+→\w+) \| (\w+) \| ([\w, ]+) \| [^|]+ \| (\d+) MiB \| ([\d ]+) \|$", PROTOCOL, re.M
    )
    arrows = {Pattern.PUSH_PULL: "PUSH→PULL", Pattern.PUB_SUB: "PUB→SUB"}
    connecting = {"operators": "operator"}
    assert {
        (file, pattern, binds, frozenset(connecting.get(c, c) for c in connects.split(", ")), int(mib), queue)
        for file, pattern, binds, connects, mib, queue in documented
    } == {
        (
            row.file,
            arrows[row.pattern],
            row.binder.value,
            frozenset(service.value for service in row.connectors),
            row.message_bytes_max // 2**20,
            f"{row.queue_messages_max:,}".replace(",", " ")
            if row.queue_messages_max > 9999
            else str(row.queue_messages_max),
        )
        for row in ENDPOINTS
    }


def test_every_state_is_in_the_drawing() -> None:
    """No state is missing from the picture of a job's life."""
    drawing = PROTOCOL.split("## States of a job")[1].split("\n## ")[0]
    assert [state for state in State if state.name not in drawing] == []
