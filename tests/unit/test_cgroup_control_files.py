"""Exact writes with read back, and the roundings that are allowed."""

import os
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from common.cpulist import format_cpu_list, parse_cpu_list
from common.errors import JobletError, Reason
from common.identifiers import new_job_id
from common.messages.logs import StoreMetric
from services.executor.cgroups import control_files
from services.executor.cgroups.driver import CgroupPlan, Write
from services.executor.cgroups.usage import CpuMeter

PAGE = os.sysconf("SC_PAGESIZE")


@pytest.mark.parametrize(
    ("asked", "present", "same"),
    [
        ("100", "100", True),
        (str(10 * PAGE + 1), str(10 * PAGE), True),  # memory is rounded down to whole pages
        (str(10 * PAGE + 1), str(11 * PAGE), False),
        (str(10 * PAGE), str(9 * PAGE), False),
        ("30", "max", False),
        ("0", "max", False),
        ("20000 100000", "20000 100000", True),
        ("20000 100000", "max 100000", False),
        ("0,1", "0-1", True),  # the kernel joins CPU lists
        ("0-1", "0", False),
        ("1", "", False),
        ("", "", True),
        ("8:0 100", "254:0 7\n8:0 100", True),  # one of several devices
        ("8:0 100", "8:0 1000", False),
        ("8:0 100", "", False),
        ("8:0 rbps=1 wbps=max riops=max wiops=max", "8:0 rbps=1 wbps=max riops=max wiops=max\n7:0 rbps=2", True),
    ],
)
def test_means_the_same(asked: str, present: str, *, same: bool) -> None:
    """Only the roundings that the kernel documents are taken for what was asked."""
    assert control_files.means_the_same(asked, present) is same


def test_a_value_that_does_not_stay_is_an_error() -> None:
    """A write that succeeds but reads back otherwise is not believed: the limit would not be enforced."""
    with pytest.raises(JobletError, match="null was set to '1', but the kernel holds ''") as caught:
        control_files.set_value(Write("/dev/null", "1"))
    assert caught.value.reason is Reason.INTERNAL


def test_a_refused_write_names_path_and_value() -> None:
    """The errno of the write reaches the caller in words."""
    with pytest.raises(JobletError, match="cannot set full to '1': No space left on device"):
        control_files.set_value(Write("/dev/full", "1"))


def test_make_groups_is_all_or_nothing(tmp_path: Path) -> None:
    """When one step fails the directories made before are removed."""
    plan = CgroupPlan((f"{tmp_path}/a", f"{tmp_path}/b"), (Write(f"{tmp_path}/missing", "1"),), (), "", (), "")
    with pytest.raises(JobletError, match="No such file"):
        control_files.make_groups(plan)
    assert list(tmp_path.iterdir()) == []


def test_an_existing_group_is_not_taken_over(tmp_path: Path) -> None:
    """A group that is there already belongs to something else: refused, and left as it is."""
    (tmp_path / "b").mkdir()
    plan = CgroupPlan((f"{tmp_path}/a", f"{tmp_path}/b"), (), (), "", (), "")
    with pytest.raises(JobletError, match="File exists"):
        control_files.make_groups(plan)
    assert [entry.name for entry in tmp_path.iterdir()] == ["b"]


def test_remove_group_removes_those_below(tmp_path: Path) -> None:
    """Groups below a group go first; what is not there is removed already."""
    (tmp_path / "a" / "b" / "c").mkdir(parents=True)
    assert control_files.remove_group(f"{tmp_path}/a")
    assert control_files.remove_group(f"{tmp_path}/a")
    assert list(tmp_path.iterdir()) == []


def test_read_table_skips_what_is_no_number(tmp_path: Path) -> None:
    """Lines of another shape, which a newer kernel may add, do no harm."""
    file = tmp_path / "cpu.stat"
    file.write_text("usage_usec 12\nburst max\na b c\n\nnr 3\n")
    assert control_files.read_table(str(file)) == {"usage_usec": 12, "nr": 3}


@given(st.frozensets(st.integers(min_value=0, max_value=300), min_size=1))
def test_cpu_lists_round_trip(cpus: frozenset[int]) -> None:
    """What is formatted is parsed as the same CPUs."""
    assert parse_cpu_list(format_cpu_list(cpus)) == cpus


@pytest.mark.parametrize("text", ["", ",", "1-", "-1", "3-1", "x", "0-99999999999", "1;2", "8192"])
def test_malformed_cpu_lists(text: str) -> None:
    """What is no list, or too large to be one, is a ValueError; nothing is allocated for it."""
    with pytest.raises(ValueError):  # noqa: PT011  # int() and ours, both mean the same here
        parse_cpu_list(text)


def sample(time_ns: int) -> StoreMetric:
    """A sample of which only the time counts."""
    return StoreMetric(job=JOB, time_ns=time_ns, cpu_percent=0.0, memory_bytes=0)


JOB = new_job_id()


def test_cpu_meter() -> None:
    """The share is that since the previous sample; a clock that was set back or a counter that fell give 0."""
    meter = CpuMeter()
    assert meter.percent(JOB, 500_000, previous=None, now_ns=10**9) == 0.0
    assert meter.percent(JOB, 1_500_000, previous=sample(10**9), now_ns=2 * 10**9) == 100.0
    assert meter.percent(JOB, 1_400_000, previous=sample(2 * 10**9), now_ns=3 * 10**9) == 0.0
    assert meter.percent(JOB, 1_600_000, previous=sample(3 * 10**9), now_ns=10**9) == 0.0
    assert meter.percent(JOB, 1_700_000, previous=sample(10**9), now_ns=2 * 10**9) == 10.0


def test_cpu_meter_from_the_start() -> None:
    """A previous sample that the meter did not make is the instant at which nothing was used."""
    meter = CpuMeter()
    assert meter.percent(JOB, 250_000, previous=sample(10**9), now_ns=2 * 10**9) == 25.0
    meter.forget(JOB)
    assert meter.percent(JOB, 250_000, previous=sample(2 * 10**9), now_ns=3 * 10**9) == 25.0
