"""What clients are told of failures: the job's own paths and words, none of the host's. Issue 3, B21.

Every way to fail that a client can choose is tried; what rnx prints, the record and the audit trail of the job are then
searched for paths of the host, for Python and for other owners.
"""

import json
import re
from pathlib import Path
from typing import Final

import pytest

from tests.e2e.node import Node

HOST_WORDS: Final = (
    r"Traceback",
    r"File \"",
    r"\.py\b",
    r"/sys/fs/cgroup",
    r"site-packages",
    r"/proc/self/fd/",
    r"/jobs/[0-9a-f]",
    r"\[Errno",
    r"0x[0-9a-f]{6,}",
    r"services\.",
)
FAILING: Final[dict[str, tuple[str, ...]]] = {
    "no such program": ("--", "/nonexistent"),
    "not in PATH": ("--", "nonexistent"),
    "a directory": ("--", "/usr"),
    "no program": ("--", "/etc/passwd"),
    "a script without interpreter": ("--upload", "SCRIPT", "--", "./script"),
    "too long": ("--", "true", *["x" * 100_000] * 11),
    "no such directory": ("--workdir", "/nope", "--", "true"),
    "a file as directory": ("--workdir", "/usr/bin/true", "--", "true"),
    "a closed directory": ("--workdir", "/proc/1/root", "--", "true"),
    "out of the root": ("--workdir", "/work/../../etc", "--", "true"),
    "memory for nothing": ("--max-memory", "1", "--", "true"),
    "hardly more": ("--max-memory", "2", "--", "true"),
    "two processes": ("--pids", "2", "--", "sh", "-c", "true | true"),
    "three files": ("--", "sh", "-c", "ulimit -n 3; exec cat /etc/passwd /etc/group"),
    "upload larger than /work": ("--upload", "/usr/bin/bash", "--work-size", "4096", "--", "true"),
    "cores that are not there": ("--cpu-cores", "4000", "--", "true"),
    "killed": ("--", "sh", "-c", "kill -9 $$"),
}


@pytest.mark.threat("B21")
def test_no_error_names_a_path_of_the_host(node: Node, tmp_path: Path) -> None:
    """Command, directory, upload and limits that fail are told in words about the job, in every place that tells."""
    script = tmp_path / "script"
    script.write_text("#!/nonexistent/interpreter\n")
    script.chmod(0o755)
    told = {}
    before = {job["id"] for job in node.jobs("--all")}
    for way, arguments in FAILING.items():
        done = node.rnx("job", "run", *(str(script) if each == "SCRIPT" else each for each in arguments))
        assert done.returncode != 0, way
        # The client names the file that it was told to upload, which is the client's own.
        told[way] = (done.stdout + done.stderr).decode().replace(str(script), "")
    for job in (each for each in node.jobs("--all") if each["id"] not in before):
        told[f"record of {job['id']}"] = json.dumps(job).replace(str(script), "")
    words = re.compile("|".join((*HOST_WORDS, re.escape(str(node.base)))))
    leaks = {
        way: text[max(0, found.start() - 80) : found.end() + 80]
        for way, text in told.items()
        if (found := words.search(text))
    }
    assert not list(leaks.items()), leaks
