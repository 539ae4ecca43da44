"""The jobs of the fault suite: what is printed, how fast, and which bytes each stream must hold afterwards.

Not here: the printing itself (`kills_printing.py`, which is the program) and the comparison (`invariants.py`).
"""

import random
from collections.abc import Mapping
from pathlib import Path
from typing import Final, NamedTuple

from tests.fault import kills_printing as printing

SOURCE: Final = Path(printing.__file__).read_text()
ROUNDS_ALL: Final = 10**9
SECONDS_ALL: Final = 3600

needs_python: Final = "needs /usr/bin/python3"
"""Reason of a skip: jobs see the host's /usr."""


class Program(NamedTuple):
    """One job. It ends after `rounds`, after `seconds` or when SIGUSR2 says that it is enough, with `exit_code`.

    With neither of the first two it prints for as long as a test needs it to, however long that takes.
    """

    seed: int
    rounds: int = ROUNDS_ALL
    seconds: int = SECONDS_ALL
    lines: int = 10
    """Of text, in each round."""
    records: int = 3
    """Binary ones, in each round; 0: nothing comes on stderr."""
    pause_ms: int = 0
    exit_code: int = 5
    gate: int = 0
    """Before this round it waits for SIGUSR1; 0: it does not."""

    @property
    def arguments(self) -> tuple[str, ...]:
        """The command of the job."""
        numbers = (self.seed, self.rounds, self.seconds, self.lines, self.records, self.pause_ms, self.exit_code)
        return ("/usr/bin/python3", "-I", "-S", "-c", SOURCE, *map(str, numbers), str(self.gate))

    def expected(self, stdout: bytes) -> dict[str, bytes]:
        """The bytes of both streams, given as many rounds as the last line of what was found on stdout tells.

        A log that lost its end tells another number or none; AssertionError in the latter case.
        """
        words = stdout[stdout.rfind(b"\n", 0, -1) + 1 :].split()
        assert words[1:] == [b"rounds"], f"stdout ends with {stdout[-80:]!r}"
        return self.printed(int(words[0]))

    def printed(self, rounds: int) -> dict[str, bytes]:
        """The bytes of both streams of a job that ended by itself after `rounds`."""
        streams = self.begun(rounds)
        end = printing.last(rounds)
        return {"stdout": streams["stdout"] + end, "stderr": streams["stderr"] + (end if self.records else b"")}

    def begun(self, rounds: int) -> dict[str, bytes]:
        """The bytes of both streams after `rounds`, of a job that is not at its end."""
        return {
            "stdout": b"".join(printing.text(self.seed, number, self.lines) for number in range(rounds)),
            "stderr": b"".join(printing.binary(self.seed, number, self.records) for number in range(rounds)),
        }


def mixed(chance: random.Random, seconds: int) -> Mapping[str, Program]:
    """Jobs that print for so long, slowly and fast, text and binary: by what they do."""
    return {
        "slow": Program(chance.randrange(2**32), seconds=seconds, lines=1, records=1, pause_ms=100, exit_code=3),
        "steady": Program(chance.randrange(2**32), seconds=seconds, lines=40, records=10, pause_ms=30, exit_code=0),
        "fast": Program(chance.randrange(2**32), seconds=seconds, lines=200, records=10, pause_ms=30, exit_code=7),
        "binary": Program(chance.randrange(2**32), seconds=seconds, lines=1, records=80, pause_ms=40, exit_code=9),
    }
