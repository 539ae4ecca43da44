"""Which lines of the requirements checklist have a passing test: `python -m tests.requirements_report [PYTEST ARGS]`.

Belongs here: the ids of the checklist, a pytest plugin that notes which marked tests passed, and the table. Does not
belong here: the text of the lines. Exit status 0 tells that no marked test failed and that every mark names a line
that exists; lines without a test are told, not judged, because they belong to later work.
"""

import sys
from collections import defaultdict
from typing import Final

import pytest

LINES_OF: Final = {"S0": 77, "S1": 51, "S2": 37, "S3": 27, "S4": 22, "T": 8}
LINES: Final = tuple(f"{source}.{line}" for source, count in LINES_OF.items() for line in range(1, count + 1))
CONFLICTS: Final = frozenset(f"X{row}" for row in range(1, 21))
"""Rows of the checklist's table of conflicts: they may be named too, but are answers and no requirements."""
MARK: Final = "requirement"


class Collector:
    """Notes marks at collection and outcomes at run time."""

    def __init__(self) -> None:
        self.lines_of_test: dict[str, tuple[str, ...]] = {}
        self.outcomes: dict[str, str] = {}

    def pytest_configure(self, config: pytest.Config) -> None:
        """Refuse other processes: their collection, and so every mark, would pass this plugin by."""
        if config.getoption("dist", "no") != "no":
            raise pytest.UsageError("the report is made in one process: leave -n out")

    def pytest_collection_modifyitems(self, items: list[pytest.Item]) -> None:
        """Keep the marked tests only: the others prove no line."""
        marked = []
        for item in items:
            lines = tuple(str(line) for mark in item.iter_markers(MARK) for line in mark.args)
            if lines:
                self.lines_of_test[item.nodeid] = lines
                marked.append(item)
        items[:] = marked

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        """A test passed when its call passed and neither its set-up nor its tear-down failed."""
        if report.outcome != "passed":
            self.outcomes[report.nodeid] = report.outcome
        elif report.when == "call":
            self.outcomes.setdefault(report.nodeid, "passed")


def summary(lines_of_test: dict[str, tuple[str, ...]], outcomes: dict[str, str]) -> tuple[dict[str, str], list[str]]:
    """Line → "passed", "failed", "skipped" or "none", the best that any of its tests reached; and unknown ids."""
    rank = ("none", "skipped", "failed", "passed")
    best: dict[str, str] = dict.fromkeys(LINES, "none")
    unknown: dict[str, None] = {}
    for test, lines in lines_of_test.items():
        outcome = outcomes.get(test, "none")
        for line in lines:
            if line not in best:
                unknown |= {} if line in CONFLICTS else {line: None}
            elif rank.index(outcome) > rank.index(best[line]):
                best[line] = outcome
    return best, list(unknown)


def table(best: dict[str, str]) -> str:
    """The table for people: one row a source and outcome."""
    rows = [f"{'source':8}{'lines':>6}{'passed':>8}{'failed':>8}{'skipped':>8}{'none':>6}"]
    without: dict[str, list[str]] = defaultdict(list)
    for source, count in LINES_OF.items():
        outcomes = [best[f"{source}.{line}"] for line in range(1, count + 1)]
        rows.append(
            f"{source:8}{count:6}{outcomes.count('passed'):8}{outcomes.count('failed'):8}"
            f"{outcomes.count('skipped'):8}{outcomes.count('none'):6}"
        )
        for line, outcome in enumerate(outcomes, 1):
            if outcome != "passed":
                without[outcome].append(f"{source}.{line}")
    for outcome, lines in sorted(without.items()):
        rows.append(f"\n{outcome}: {' '.join(lines)}")
    rows.append(f"\nwith a passing test: {sum(each == 'passed' for each in best.values())} of {len(best)} lines")
    return "\n".join(rows)


def main(arguments: list[str]) -> int:
    """Run the marked tests and print the table."""
    collector = Collector()
    code = pytest.main(["-q", "--no-header", *arguments], plugins=[collector])
    best, unknown = summary(collector.lines_of_test, collector.outcomes)
    sys.stdout.write(f"\n{table(best)}\n")
    if unknown:
        sys.stdout.write(f"marks that name no line of the checklist: {' '.join(unknown)}\n")
    return 0 if code in (pytest.ExitCode.OK, pytest.ExitCode.NO_TESTS_COLLECTED) and not unknown else 1


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
