"""The table of `make requirements` tells the truth: what passed, what did not, and what nobody wrote."""

import pytest

from tests.requirements_report import LINES, main, summary, table


def test_a_line_is_as_good_as_its_best_test() -> None:
    """Passed beats failed, failed beats skipped, and a test that did not run proves nothing."""
    lines_of_test = {"a": ("S0.1", "S0.2"), "b": ("S0.2", "S0.3"), "c": ("S0.4",), "d": ("S0.5", "X7", "S9.1", "S0.78")}
    best, unknown = summary(lines_of_test, {"a": "failed", "b": "passed", "c": "skipped"})
    assert [best[f"S0.{line}"] for line in range(1, 7)] == ["failed", "passed", "passed", "skipped", "none", "none"]
    assert unknown == ["S9.1", "S0.78"]
    assert table(best).endswith(f"with a passing test: 2 of {len(LINES)} lines")
    assert "\nfailed: S0.1\n" in table(best)


def test_it_is_made_in_one_process(capfd: pytest.CaptureFixture[str]) -> None:
    """With workers no mark would be seen: a table of nothing is no answer."""
    assert main(["-n", "2", "tests/unit/test_requirements_report.py"]) == 1
    assert "leave -n out" in capfd.readouterr().err
