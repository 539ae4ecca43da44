"""How long a job's tasks wait for CPU, memory and disk: PSI of a v2 group, also beside v1 controllers.

Reference: Documentation/accounting/psi.rst. Here "some avg10": percent of the last 10 s in which some task waited.
"""

from typing import Final, NamedTuple

from services.executor.cgroups import control_files

FILES: Final = ("cpu.pressure", "memory.pressure", "io.pressure")


class Pressure(NamedTuple):
    """In the order of FILES; 0.0 where the kernel does not tell."""

    cpu: float
    memory: float
    io: float


def readable(group: str) -> frozenset[str]:
    """Those of FILES that can be read: none where the kernel has no PSI, or was booted without psi=1."""
    found = set()
    for file in FILES:
        try:
            control_files.read(f"{group}/{file}")
        except OSError:
            continue
        found.add(file)
    return frozenset(found)


def read(group: str, files: frozenset[str]) -> Pressure:
    """Pressure now, of those `files` that are readable. Raises OSError when the group is gone."""
    return Pressure(*(_some_avg10(control_files.read(f"{group}/{file}")) if file in files else 0.0 for file in FILES))


def _some_avg10(text: str) -> float:
    """Of `some avg10=0.00 avg60=… avg300=… total=…`, the first line."""
    words = text.partition("\n")[0].split()
    averages = [word.removeprefix("avg10=") for word in words if word.startswith("avg10=")]
    return float(averages[0]) if words[:1] == ["some"] and averages else 0.0
