"""`python -m benchmarks.run [--only NAME …] [--quick] [--large] [--json FILE] [--plots DIRECTORY]`: ours beside peers.

Belongs here: the command line and a node for the run. Does not belong here: the measurements (`measures.py` lists
them). The table goes to stdout, everything also to bench.json, and pictures beside it or where --plots says. Nothing
is asserted: a noisy machine must not fail a build.
"""

import argparse
import os
import platform
import sys
import time
from collections.abc import Sequence
from pathlib import Path

from benchmarks.charts import write_growth
from benchmarks.measures import MEASURES
from benchmarks.nodes import measured_node
from benchmarks.plot import write_svg
from benchmarks.results import Row, table, write_json
from benchmarks.scale import LARGE, QUICK, Scale


def machine() -> dict[str, str]:
    """What the numbers were measured on."""
    return {
        "cpus": str(os.cpu_count()),
        "cpu": _line_of("/proc/cpuinfo", "model name").split(":", 1)[1].strip(),
        "memory_mib": str(int(_line_of("/proc/meminfo", "MemTotal").split()[1]) // 1024),
        "kernel": platform.release(),
        "python": platform.python_version(),
        "load_before": f"{os.getloadavg()[0]:.1f}",
        "time": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
    }


def _line_of(file: str, key: str) -> str:
    return next((line for line in Path(file).read_text().splitlines() if line.startswith(key)), f"{key}: unknown")


def measure(names: Sequence[str], scale: Scale) -> list[Row]:
    """Start a node, run the measurements on it one after the other, and stop it."""
    rows: list[Row] = []
    # More streams than a crowd has followers, so that others can be served beside it.
    with measured_node({"joblet": {"grpc": {"active_streams_max": 2 * Scale().followers}}}) as (node, client):
        for name in names:
            sys.stderr.write(f"{name} …\n")
            rows += MEASURES[name](node, client, scale)
    return rows


def draw(rows: Sequence[Row], facts: dict[str, str], directory: Path, name: str) -> None:
    """Write `<name>.svg`, bars beside each other's, and `<name>-growth.svg`."""
    directory.mkdir(parents=True, exist_ok=True)
    where = f"{facts['cpus']} cpus, Linux {facts['kernel']}"
    write_svg(rows, f"joblet beside its peers, {where}", directory / f"{name}.svg")
    write_growth(rows, f"By the number of lines of a job, {where}", directory / f"{name}-growth.svg")


def main() -> int:
    """Run and show."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.run", description=__doc__)
    parser.add_argument("--only", nargs="+", choices=sorted(MEASURES), default=list(MEASURES))
    parser.add_argument("--quick", action="store_true", help="small amounts: shows that it works, not how fast it is")
    parser.add_argument(
        "--large", action="store_true", help=f"growth also of a job of {LARGE:,} lines: 10 GB of output"
    )
    parser.add_argument("--json", type=Path, default=Path("bench.json"))
    parser.add_argument("--plots", type=Path, help="where the pictures go; else beside the JSON")
    arguments = parser.parse_args()
    if os.geteuid() != 0:
        sys.stderr.write("benchmarks: a node needs root\n")
        return 1
    facts = machine()
    scale = QUICK if arguments.quick else Scale()
    if arguments.large:
        scale = scale._replace(growth=(*scale.growth, LARGE))
    rows = measure(arguments.only, scale)
    write_json(rows, facts, arguments.json)
    draw(rows, facts, arguments.plots or arguments.json.parent, arguments.json.stem)
    sys.stdout.write(" ".join(f"{key}={value!r}" for key, value in facts.items()) + "\n\n" + table(rows) + "\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
