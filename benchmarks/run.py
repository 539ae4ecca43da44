"""`python -m benchmarks.run [--only NAME …] [--quick] [--json FILE]`: the comparisons of architecture.md §10.

Belongs here: the command line and a node for the run. Does not belong here: the measurements (`measures.py`). The table
goes to stdout, everything also to bench.json, and a picture to bench.svg. Nothing is asserted: a noisy machine must not
fail a build.
"""

import argparse
import os
import platform
import sys
import time
from pathlib import Path

from benchmarks.measures import MEASURES
from benchmarks.nodes import measured_node
from benchmarks.plot import write_svg
from benchmarks.results import Row, table, write_json
from benchmarks.scale import QUICK, Scale


def machine() -> dict[str, str]:
    """What the numbers were measured on."""
    memory = next(
        line.split()[1] for line in Path("/proc/meminfo").read_text().splitlines() if line.startswith("MemTotal")
    )
    return {
        "cpus": str(os.cpu_count()),
        "memory_mib": str(int(memory) // 1024),
        "kernel": platform.release(),
        "python": platform.python_version(),
        "load_before": f"{os.getloadavg()[0]:.1f}",
        "time": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
    }


def measure(names: list[str], scale: Scale) -> list[Row]:
    """Start a node, run the measurements on it one after the other, and stop it."""
    rows: list[Row] = []
    # More streams than a crowd has followers, so that others can be served beside it.
    with measured_node({"joblet": {"grpc": {"active_streams_max": 2 * Scale().followers}}}) as (node, client):
        for name in names:
            sys.stderr.write(f"{name} …\n")
            rows += MEASURES[name](node, client, scale)
    return rows


def main() -> int:
    """Run and show."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.run", description=__doc__)
    parser.add_argument("--only", nargs="+", choices=sorted(MEASURES), default=list(MEASURES))
    parser.add_argument("--quick", action="store_true", help="small amounts: shows that it works, not how fast it is")
    parser.add_argument("--json", type=Path, default=Path("bench.json"))
    arguments = parser.parse_args()
    if os.geteuid() != 0:
        sys.stderr.write("benchmarks: a node needs root\n")
        return 1
    facts = machine()
    rows = measure(arguments.only, QUICK if arguments.quick else Scale())
    write_json(rows, facts, arguments.json)
    write_svg(
        rows,
        f"joblet beside its peers, {facts['cpus']} cpus, Linux {facts['kernel']}",
        arguments.json.with_suffix(".svg"),
    )
    sys.stdout.write(" ".join(f"{key}={value}" for key, value in facts.items()) + "\n\n" + table(rows) + "\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
