"""Volumes: what creating, mounting and removing one takes, and how fast a job writes and reads there.

The peer of the throughput is the same program without joblet, as root, in a directory of the file system that holds the
volumes. Belongs here: these measurements. Does not belong here: limits, which are tests.
"""

import json
import shutil
import statistics
import subprocess
import time
from collections.abc import Callable
from functools import partial
from typing import Final

from benchmarks.client import Client
from benchmarks.results import Row, compared, percentile
from benchmarks.scale import Scale
from tests.e2e.node import Node

MIB: Final = 2**20
PYTHON: Final = "/usr/bin/python3"
WRITE: Final = """
import json, mmap, os, sys, time
path, size, block = sys.argv[1], int(sys.argv[2]), 1 << 20
data = mmap.mmap(-1, block); data.write(os.urandom(block))
def write(flags):
    file = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | flags)
    begun = time.monotonic()
    for _ in range(size // block):
        os.write(file, data)
    os.fsync(file); took = time.monotonic() - begun; os.close(file); return size / took / 1e6
def read():
    file = os.open(path, os.O_RDONLY | os.O_DIRECT); begun = time.monotonic()
    while os.readv(file, [data]): pass
    took = time.monotonic() - begun; os.close(file); return size / took / 1e6
def small():
    begun = time.monotonic()
    for n in range(500):
        file = os.open(f"{path}.{n}", os.O_WRONLY | os.O_CREAT, 0o600); os.write(file, b"x" * 4096); os.close(file)
    took = time.monotonic() - begun
    for n in range(500): os.unlink(f"{path}.{n}")
    return 500 / took
print(json.dumps({"buffered": write(0), "direct": write(os.O_DIRECT), "read": read(), "small": small()}))
os.unlink(path)
"""
"""MB/s of a file written through the page cache with fsync, past it, and read past it; small files a second."""

WHAT: Final = {
    "buffered": ("volume write + fsync", "MB/s"),
    "direct": ("volume write, O_DIRECT", "MB/s"),
    "read": ("volume read, O_DIRECT", "MB/s"),
    "small": ("volume small files", "files/s"),
}


def volumes(node: Node, client: Client, scale: Scale) -> list[Row]:
    """Latencies and throughput."""
    return [*latencies(node, client, scale), *throughput(node, scale)]


def latencies(node: Node, client: Client, scale: Scale) -> list[Row]:
    """Create, first byte of a job with a cold and with a warm volume, and remove; all over mutual TLS."""
    rounds = max(5, scale.starts // 4)
    names = [f"bench-{n}" for n in range(rounds)]
    created = [timed(partial(client.create_volume, name, 64 * MIB)) for name in names]
    cold = [timed(partial(client.output_of, "true", volume=name)) for name in names]
    warm = [timed(partial(client.output_of, "true", volume=names[-1])) for _ in names]
    without = [timed(partial(client.output_of, "true")) for _ in names]
    shown = [inspected(node, name)["metrics"] for name in names]
    removed = [timed(partial(client.remove_volume, name)) for name in names]
    mounts = [each["mount_us"] / 1e3 for each in shown]
    unmounts = [each["unmount_us"] / 1e3 for each in shown if each["unmount_us"]]
    plain = statistics.median(without)
    rows = [
        row("volume create, 64 MB", created),
        row("volume mount, in the service", mounts),
        row("job with a volume not mounted before", cold, note=f"{plain:.1f} ms without a volume"),
        row("job with a volume mounted before", warm, note=f"{plain:.1f} ms without a volume"),
        row("volume remove", removed),
    ]
    return [*rows, row("volume unmount, in the service", unmounts)] if unmounts else rows


def throughput(node: Node, scale: Scale) -> list[Row]:
    """The same program in a job on a volume, and without joblet on the file system below, in turn."""
    size = 64 * MIB if scale.starts < 20 else 512 * MIB
    node.ok("volume", "create", "bench-speed", f"--size={size + 64 * MIB}")
    below = node.base / "volumes" / "bench-below"
    below.mkdir()
    ours: dict[str, list[float]] = {key: [] for key in WHAT}
    theirs: dict[str, list[float]] = {key: [] for key in WHAT}
    command = (PYTHON, "-I", "-c", WRITE)
    try:
        for _ in range(3):
            job = ("job", "run", "--volume", "bench-speed", "--", *command, "/volumes/bench-speed/f", str(size))
            told = json.loads(node.ok(*job, timeout_s=600))
            bare = subprocess.run([*command, str(below / "f"), str(size)], capture_output=True, check=True, timeout=600)
            for key, value in json.loads(bare.stdout).items():
                ours[key].append(told[key])
                theirs[key].append(value)
    finally:
        shutil.rmtree(below)
        node.ok("volume", "remove", "bench-speed", "--force")
    return [
        compared(
            Row(
                name=name,
                unit=unit,
                ours=statistics.median(ours[key]),
                best=max(ours[key]),
                peer="the file system below",
                theirs=statistics.median(theirs[key]),
                their_best=max(theirs[key]),
                budget="≥ 0.9 ×",
            ),
            ratio_min=0.9,
        )
        for key, (name, unit) in WHAT.items()
    ]


def timed(what: Callable[[], object]) -> float:
    """Milliseconds that it takes."""
    begun = time.monotonic()
    what()
    return (time.monotonic() - begun) * 1e3


def row(name: str, values: list[float], *, note: str = "") -> Row:
    """Median and best of latencies in milliseconds."""
    tail = f"p95 {percentile(values, 95):.1f} ms" if len(values) > 1 else ""
    told = ", ".join(part for part in (tail, note) if part)
    return Row(name=name, unit="ms", ours=statistics.median(values), best=min(values), note=told)


def inspected(node: Node, name: str) -> dict[str, dict[str, int]]:
    """`rnx --json volume inspect`."""
    found: dict[str, dict[str, int]] = json.loads(node.ok("--json", "volume", "inspect", name))
    return found
