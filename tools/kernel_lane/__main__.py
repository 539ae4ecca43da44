"""`make test-kernel`: a real kernel with cgroups v2 only and a throttled disk, and the tests that need one, in it.

Here: the order of things and the exit status, which is pytest's. Not here: packages, boot files, the machine, and what
runs in it (guest.sh). Nothing is installed but missing programs, and nothing is left but the cache of boot files.
"""

import argparse
import os
import platform
import shlex
import signal
import sys
import tempfile
import time
from pathlib import Path
from typing import Final, NoReturn

from tools.kernel_lane import initramfs, machine, packages
from tools.kernel_lane.errors import LaneError

CHECKOUT: Final = Path(__file__).resolve().parents[2]
CACHE: Final = CHECKOUT / ".cache" / "kernel-lane"
GUEST: Final = Path(__file__).with_name("guest.sh")
TEST_TIMEOUT_S: Final = 120
"""Of one test on a machine as fast as the host; pyproject.toml has the same."""
SOFTWARE_SLOWNESS: Final = 5
"""By how much waiting is longer where the processor is software."""
MEMORY_MIB: Final = 2048
CPUS: Final = 4
"""More than the tests keep busy, so that a limit of half a core is what holds a job back, not its neighbours."""
CANNOT_RUN: Final = 3
"""Exit status when the lane itself failed: pytest uses 1, 2, 4 and 5."""


def settings(tests: list[str], *, slowness: int) -> str:
    """What guest.sh reads: assignments in the shell's language."""
    values = {
        "LANE_CHECKOUT": str(CHECKOUT),
        "LANE_TESTS": shlex.join(tests),
        "LANE_TEST_TIMEOUT_S": str(TEST_TIMEOUT_S * slowness),
        "JOBLET_TEST_SLOWNESS": str(slowness),
        "JOBLET_TEST_DISK": "/disk",
        "CI": "true",
    }
    return "".join(f"export {name}={shlex.quote(value)}\n" for name, value in values.items())


def exit_status(share: Path) -> int:
    """What pytest said; LaneError when the machine ended before it could say anything."""
    try:
        return int((share / "status").read_text())
    except FileNotFoundError as cause:
        raise LaneError("the machine ended before the tests did; its last lines are above") from cause


def run(tests: list[str], *, timeout_s: float) -> int:
    """One machine, from nothing to its end; pytest's exit status."""
    packages.install_missing()
    files = initramfs.boot_files(CACHE)
    accelerator = machine.accelerator(files.kernel)
    say(f"{files.kernel.parent.name}, processor by {accelerator}")
    with tempfile.TemporaryDirectory(prefix="kernel-lane-") as directory:
        work = Path(directory)
        share = work / "share"
        share.mkdir()
        slowness = 1 if accelerator == machine.KVM else SOFTWARE_SLOWNESS
        (share / "settings").write_text(settings(tests, slowness=slowness))
        initramfs.pack(files, work / "initramfs")
        machine.make_disk(work / "disk")
        described = machine.Machine(
            files.kernel, work / "initramfs", work / "disk", share, GUEST, accelerator, CPUS, MEMORY_MIB
        )
        machine.run(machine.command(described), timeout_s=timeout_s, show=show)
        return exit_status(share)


def say(text: str) -> None:
    """A line of the lane's own."""
    show(f"lane: {text}\n")


def show(text: str) -> None:
    """As it comes, also through a pipe."""
    sys.stdout.write(text)
    sys.stdout.flush()


def _leave(number: int, _frame: object) -> NoReturn:
    raise SystemExit(128 + number)


def main() -> int:
    """Exit status: pytest's, or CANNOT_RUN."""
    parser = argparse.ArgumentParser(prog="make test-kernel", description="Run tests in a machine of their own.")
    parser.add_argument("--timeout-s", type=float, default=3300, help="end the machine after so many seconds")
    parser.add_argument("tests", nargs=argparse.REMAINDER, help="arguments of pytest, after --")
    arguments = parser.parse_args()
    signal.signal(signal.SIGTERM, _leave)
    started = time.monotonic()
    try:
        if (platform.system(), platform.machine()) != ("Linux", "x86_64"):
            raise LaneError(f"the lane runs on Linux x86_64 only; this is {platform.system()} {platform.machine()}")
        status = run([each for each in arguments.tests if each != "--"], timeout_s=arguments.timeout_s)
    except LaneError as failure:
        sys.stderr.write(f"\nlane: {failure}\n")
        return CANNOT_RUN
    except KeyboardInterrupt:
        return 128 + signal.SIGINT
    say(f"exit status {status} after {time.monotonic() - started:.0f} s")
    return status


if __name__ == "__main__":
    os.chdir(CHECKOUT)
    raise SystemExit(main())
