"""Running the probing program, and what came out. Not here: what it means (`capabilities.py`)."""

import json
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Final, NamedTuple

from services.executor.probes.attempts import Failure
from services.executor.probes.trials import Request

PROGRAM_S_MAX: Final = 30.0
_SOURCE_ROOT: Final = Path(__file__).resolve().parents[3]
_PROGRAM: Final = (
    f"import sys; sys.path.insert(0, {str(_SOURCE_ROOT)!r}); from services.executor.probes.program import main; main()"
)


class Outcomes(NamedTuple):
    """What was tried: name of the capability → None, or why it failed. `broken`: why nothing was."""

    tried: Mapping[str, Failure | None]
    broken: str = ""

    def of(self, name: str) -> Failure | None:
        """None: it works. What was not tried does not."""
        return self.tried.get(name, Failure(0, self.broken or "it was not tried"))


def try_all(request: Request, seccomp: bytes) -> Outcomes:
    """Run the program to its end, which comes within PROGRAM_S_MAX. `seccomp`: the filter of jobs; empty: none."""
    command = [sys.executable, "-I", "-S", "-c", _PROGRAM, json.dumps(request)]
    try:
        done = subprocess.run(
            command, input=seccomp, capture_output=True, env={}, cwd="/", timeout=PROGRAM_S_MAX, check=False
        )
    except (OSError, subprocess.TimeoutExpired) as cause:
        return Outcomes({}, f"the probing program failed: {cause}")
    if done.returncode != 0:
        last = done.stderr.decode("utf-8", "replace").strip().splitlines()[-1:]
        return Outcomes({}, f"the probing program ended with {done.returncode}: {' '.join(last)}")
    answers = json.loads(done.stdout)
    return Outcomes({name: None if answer is None else Failure(*answer) for name, answer in answers.items()})
