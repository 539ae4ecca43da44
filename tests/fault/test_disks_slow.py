"""A disk of one megabyte a second under a job that writes as fast as it can: the job waits, and nobody else does."""

import contextlib
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Final

import pytest

from tests.fault.disks_filesystems import MIB, small_ext4
from tests.fault.disks_nodes import (
    Services,
    assert_nothing_of_jobs_left,
    assert_whole,
    based,
    needs_root,
    noise,
    printed,
    sha256_of,
    started,
    wait_until_stored,
)
from tests.leaks import CGROUP_ROOT, OWN_MARK
from tests.waiting import wait_for

pytestmark = [needs_root, pytest.mark.timeout(300)]

BYTES_PER_S: Final = 1_000_000
JOURNAL_BYTES_MAX: Final = 4 * MIB
LINES: Final = 10_000
"""Of a round: a megabyte."""


@contextlib.contextmanager
def slow_device(where: Path, pid: int) -> Iterator[None]:
    """What the process `pid` writes and synchronizes on the device below `where` passes at BYTES_PER_S."""
    device = where.stat().st_dev
    name = f"{os.major(device)}:{os.minor(device)}"
    v1 = CGROUP_ROOT / "blkio"
    root, file, line = (
        (v1, "blkio.throttle.write_bps_device", f"{name} {BYTES_PER_S}")
        if v1.is_dir()
        else (CGROUP_ROOT, "io.max", f"{name} wbps={BYTES_PER_S}")
    )
    group = root / f"{OWN_MARK}-slow"
    try:
        group.mkdir()
        (group / file).write_text(line)
    except OSError as cause:
        pytest.skip(f"this host needs a disk that can be throttled: {cause}")
    (group / "cgroup.procs").write_text(str(pid))
    try:
        yield
    finally:
        for each in (group / "cgroup.procs").read_text().split():
            (root / "cgroup.procs").write_text(each)
        wait_for(lambda: _removed(group), what="the throttled group to be removed")


def _removed(group: Path) -> bool:
    try:
        group.rmdir()
    except OSError:
        return False
    return True


@pytest.mark.threat("F18")
@pytest.mark.threat("C17")
def test_a_slow_disk_holds_the_job_back_and_nobody_else() -> None:
    """The job stops at its journal's limit, services stay small, commands are answered, and all of it is stored."""
    settings = {"joblet": {"journal": {"bytes_max": JOURNAL_BYTES_MAX}}}
    script = f"i=0; while [ ! -e /tmp/enough ]; do {noise(18, LINES)}; i=$((i + 1)); done; echo $i rounds"
    with based("slow", settings) as node:
        made = small_ext4(node.base / "logs", node.base / "image", 64 * MIB)
        with made, started(node):
            services = Services(node)
            with slow_device(node.base / "logs", services.pids["persist"]):
                job = node.detached("--", "sh", "-c", script)
                inside = Path(f"/proc/{node.wait_for_state(job, 'running')['pid']}/root/tmp")
                journal = node.base / "jobs" / job / "journal"
                peaks: list[int] = []

                def held_back() -> bool:
                    peaks.append(journal.stat().st_blocks * 512)
                    return peaks[-1] >= JOURNAL_BYTES_MAX

                wait_for(held_back, what="the journal to reach its limit")
                stored = node.base / "logs" / job / "stdout.log.gz"
                at = stored.stat().st_size if stored.exists() else 0
                for _ in range(2):
                    assert node.status(job)["state"] == "running"
                    assert [each["id"] for each in node.jobs("--state", "running")] == [job]
                quiet = node.detached("--", "echo", "quiet")
                node.ok("job", "wait", quiet)
                assert node.ok("job", "log", quiet, timeout_s=100) == b"quiet\n"
                assert node.status(job)["state"] == "running", "the quiet job's line did not wait for the flood's end"
                wait_for(lambda: stored.stat().st_size > at, timeout_s=20, what="storing to go on")
                held_back()
                assert max(peaks) < JOURNAL_BYTES_MAX + 4 * MIB
            (inside / "enough").touch()
            node.ok("job", "wait", job, timeout_s=100)
            wait_until_stored(node, [job], timeout_s=60)
            got = node.ok("job", "log", job, "--no-follow")
            a_round = printed(noise(18, LINES))
            rounds = len(got) // len(a_round)
            assert sha256_of(got) == sha256_of(a_round * rounds + b"%d rounds\n" % rounds)
            assert_whole(node, job, quiet)
            services.assert_same()
            services.assert_bounded(96 * MIB)
            assert_nothing_of_jobs_left(node)
