"""The probing program: a small interpreter that tries everything in children, and prints what failed.

Run as `python -I -S -c "import sys; sys.path.insert(0, ROOT); from services.executor.probes.program import main;
main()" REQUEST` with the system call filter of jobs (struct sock_filter[]) as standard input, empty where none was
compiled. REQUEST is a JSON array, the fields of `trials.Request`; it prints one JSON object, name → null or [errno,
text].

Why a program of its own: the executor has threads (ZeroMQ), and who has threads does not fork. Only the standard
library and this room are imported.
"""

import json
import signal
import sys

from services.executor.linux.processes import set_parent_death_signal
from services.executor.linux.seccomp import Filter
from services.executor.probes.trials import Request, trials


def main() -> None:
    """Try, one after the other."""
    set_parent_death_signal(signal.SIGKILL)
    request = Request(*json.loads(sys.argv[1]))
    program = sys.stdin.buffer.read()
    seccomp = Filter(program) if program else None
    sys.stdout.write(json.dumps({name: trial() for name, trial in trials(request, seccomp).items()}))
