"""Lists of CPU numbers as the kernel writes and reads them: `0-1,3`. cpuset(7), "List format". Pure."""

from collections.abc import Iterable
from typing import Final

CPUS_MAX: Final = 8192
"""CONFIG_NR_CPUS of the largest x86-64 kernels: numbers are below it."""


def parse_cpu_list(text: str) -> frozenset[int]:
    """The numbers in a list. Raises ValueError."""
    cpus: set[int] = set()
    for part in text.split(","):
        first, dash, last = part.strip().partition("-")
        low, high = int(first), int(last if dash else first)
        if not 0 <= low <= high < CPUS_MAX:
            raise ValueError(f"{part!r} is no range of CPUs")
        cpus.update(range(low, high + 1))
    return frozenset(cpus)


def format_cpu_list(cpus: Iterable[int]) -> str:
    """The shortest list of these numbers."""
    ranges: list[list[int]] = []
    for cpu in sorted(cpus):
        if ranges and ranges[-1][1] == cpu - 1:
            ranges[-1][1] = cpu
        else:
            ranges.append([cpu, cpu])
    return ",".join(str(low) if low == high else f"{low}-{high}" for low, high in ranges)
