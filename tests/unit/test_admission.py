"""What the executor takes, and what it refuses by name."""

from typing import Any

import pytest
from msgspec.structs import replace

from common.config.settings import Joblet, Jobs, Journal
from common.errors import JobletError, Reason
from common.messages.jobs import JobSpec, Limits, OnFull, Upload, VolumeMount
from services.executor import admission
from services.executor.admission import RESERVE_FILES, Room, admit, check_room, check_stop

NOW_NS = 1_800_000_000 * 10**9
SPEC = JobSpec(command="true")
UPLOAD = Upload(id="6fa459ea-ee8a-4ca4-894e-db77e160355e", bytes=10_000, entries=3)


def admitted(spec: JobSpec, **ports: Any) -> JobSpec:
    """The spec on a host that can do everything, with every upload staged."""
    return admit(
        spec,
        **{"unsupported": lambda _: (), "staged": lambda _: True, "settings": Joblet(), "now_ns": NOW_NS, **ports},
    )


def refusal(spec: JobSpec, **ports: Any) -> JobletError:
    """The error that `spec` is refused with."""
    with pytest.raises(JobletError) as caught:
        admitted(spec, **ports)
    assert caught.value.detail, "a refusal says what to do"
    return caught.value


def test_the_nodes_defaults_are_filled_in() -> None:
    """What runs is what the record says: pids and the size of /work included."""
    spec = admitted(SPEC)
    assert (spec.limits.pids, spec.work_bytes) == (4096, 2**20)
    assert admitted(replace(SPEC, uploads=(UPLOAD,))).work_bytes == 2**20 + 10_000 + 4 * 4096
    assert admitted(replace(SPEC, work_bytes=8192, limits=Limits(pids=7))).limits.pids == 7


@pytest.mark.parametrize("default", list(OnFull))
def test_what_happens_without_room_is_the_jobs_choice_or_the_nodes(default: OnFull) -> None:
    """And the record says which holds."""
    settings = Joblet(journal=Journal(on_full=default.value))
    assert admitted(SPEC, settings=settings).on_full is default
    for chosen in OnFull:
        assert admitted(replace(SPEC, on_full=chosen), settings=settings).on_full is chosen


@pytest.mark.threat("F13")
@pytest.mark.threat("F17")
@pytest.mark.parametrize(
    ("room", "reserve_bytes", "refused"),
    [
        (Room(bytes=1000, files=RESERVE_FILES), 1000, ""),
        (Room(bytes=1000, files=None), 1000, ""),
        (Room(bytes=999, files=None), 1000, "999 bytes are free"),
        (Room(bytes=2000, files=RESERVE_FILES - 1), 1000, "63 inodes are free"),
        (Room(bytes=0, files=0), 0, ""),
        (Room(bytes=None, files=None), 1000, ""),
    ],
)
def test_below_the_reserve_no_job_is_taken(room: Room, reserve_bytes: int, refused: str) -> None:
    """EXHAUSTED, retryable, saying what to free; a reserve of 0 asks for nothing."""
    if not refused:
        check_room(room, reserve_bytes=reserve_bytes)
        return
    with pytest.raises(JobletError, match=refused) as caught:
        check_room(room, reserve_bytes=reserve_bytes)
    assert (caught.value.reason, caught.value.retryable) == (Reason.EXHAUSTED, True)
    assert "free some" in caught.value.detail


@pytest.mark.threat("D25")
@pytest.mark.parametrize(
    "changes",
    [
        {"command": ""},
        {"command": "a\0b"},
        {"args": ("x\0",)},
        {"args": ("\ud800",)},
        {"args": ("x",) * (admission.ARGS_MAX + 1)},
        {"args": ("x" * (admission.STRING_BYTES_MAX + 1),)},
        {"args": ("x" * 100_000,) * 11},
        {"name": "-x"},
        {"name": "a/b"},
        {"name": "a\n"},
        {"labels": {"a b": "x"}},
        {"labels": {"a": "x\n"}},
        {"labels": {"a": "\x1b[2J"}},
        {"labels": {"a": "x" * (admission.LABEL_VALUE_CHARACTERS_MAX + 1)}},
        {"labels": {f"l{n}": "" for n in range(admission.LABELS_MAX + 1)}},
        {"environment": {"1A": "x"}},
        {"environment": {"A=B": "x"}},
        {"environment": {"": "x"}},
        {"environment": {"A": "\0"}},
        {"environment": {f"V{n}": "" for n in range(admission.VARIABLES_MAX + 1)}},
        {"workdir": "work"},
        {"workdir": "/work/../etc"},
        {"workdir": "/proc/self/fd/7"},
        {"workdir": "/" + "x" * admission.WORKDIR_BYTES_MAX},
        {"work_bytes": 4095},
        {"work_bytes": 16 * 2**30 + 1},
        {"grace_ms": -1},
        {"stop_signal": 0},
        {"stop_signal": 65},
        {"limits": Limits(cpu_percent=0)},
        {"limits": Limits(cpu_weight=10_001)},
        {"limits": Limits(cpu_cores="0;1")},
        {"limits": Limits(memory_bytes=2**20 - 1)},
        {"limits": Limits(memory_bytes=2**63)},
        {"limits": Limits(pids=1)},
        {"limits": Limits(timeout_ms=0)},
        {"limits": Limits(io_weight=0)},
        {"limits": Limits(io_weight=10_001)},
        {"limits": Limits(read_bytes_per_s=4095)},
        {"limits": Limits(write_bytes_per_s=2**63)},
        {"limits": Limits(read_ops_per_s=1)},
        {"limits": Limits(write_ops_per_s=2**32 - 1)},
        {"limits": Limits(open_files=2)},
        {"limits": Limits(open_files=1_048_577)},
        {"limits": Limits(file_bytes=0)},
        {"uploads": (replace(UPLOAD, id="../../etc/passwd"),)},
        {"uploads": (replace(UPLOAD, bytes=-1),)},
    ],
)
def test_what_cannot_be_right_is_invalid(changes: dict[str, Any]) -> None:
    """Each with a text and a repair."""
    assert refusal(replace(SPEC, **changes)).reason is Reason.INVALID


@pytest.mark.parametrize(
    "changes",
    [
        {"args": ("x",) * admission.ARGS_MAX},
        {"args": ("x" * admission.STRING_BYTES_MAX,)},
        {"args": ("x\n\x1b é",)},
        {"labels": {"a": "v1.2/x:y@z +-"}},
        {"labels": {f"l{n}": "" for n in range(admission.LABELS_MAX)}},
        {"environment": {"_A1": "any\nthing="}},
        {"workdir": "/tmp/.."[:4]},
        {"limits": Limits(cpu_percent=1, cpu_weight=1, cpu_cores="0-1,4", memory_bytes=2**20, pids=2, timeout_ms=1)},
        {"limits": Limits(io_weight=10_000, read_bytes_per_s=4096, write_bytes_per_s=2**63 - 1)},
        {"limits": Limits(io_weight=1, read_ops_per_s=2, write_ops_per_s=2**32 - 2)},
        {"limits": Limits(open_files=3, file_bytes=1)},
        {"limits": Limits(open_files=1_048_576, file_bytes=2**63 - 1)},
        {"stop_signal": 64, "grace_ms": 0},
        {"work_bytes": 16 * 2**30},
    ],
)
def test_what_is_at_a_bound_is_taken(changes: dict[str, Any]) -> None:
    """The bounds belong to what is allowed."""
    admitted(replace(SPEC, **changes))


DATA = VolumeMount(name="data", path="/volumes/data")


@pytest.mark.threat("D25")
@pytest.mark.parametrize(
    "volumes",
    [
        (VolumeMount(name="../x", path="/data"),),
        (VolumeMount(name="data", path="/data/../etc"),),
        (VolumeMount(name="data", path="/usr/lib"),),
        (DATA, VolumeMount(name="data", path="/other")),
        (DATA, VolumeMount(name="other", path=DATA.path)),
    ],
)
def test_a_volume_that_cannot_be_is_invalid(volumes: tuple[VolumeMount, ...]) -> None:
    """Before anything is recorded; tests/property/test_mount_points.py has all the ways."""
    assert refusal(replace(SPEC, volumes=volumes)).reason is Reason.INVALID
    assert admitted(replace(SPEC, volumes=(DATA,))).volumes == (DATA,)


def test_what_the_node_binds_read_only_is_closed_to_volumes() -> None:
    """Below it nothing can be made."""
    settings = Joblet(jobs=Jobs(read_only_paths=("/opt/tools",)))
    spec = replace(SPEC, volumes=(VolumeMount(name="data", path="/opt/tools/data"),))
    assert "/opt/tools" in refusal(spec, settings=settings).message
    admitted(spec)


@pytest.mark.requirement("S1.14")
def test_a_volume_at_work_has_its_own_size() -> None:
    """There is no tmpfs that a size could be for; uploads need one that can be written to."""
    home = VolumeMount(name="home", path="/work")
    assert admitted(replace(SPEC, volumes=(home,))).work_bytes is None
    assert admitted(replace(SPEC, volumes=(DATA,))).work_bytes == 2**20
    assert admitted(replace(SPEC, volumes=(home,), uploads=(UPLOAD,))).work_bytes is None
    assert "volume home" in refusal(replace(SPEC, volumes=(home,), work_bytes=2**20)).message
    read_only = replace(home, read_only=True)
    assert "read-only" in refusal(replace(SPEC, volumes=(read_only,), uploads=(UPLOAD,))).message
    admitted(replace(SPEC, volumes=(read_only,)))


def test_limits_that_the_host_cannot_enforce_are_refused_with_the_repair() -> None:
    """FAILED_PRECONDITION, naming limit and repair."""
    error = refusal(
        replace(SPEC, limits=Limits(cpu_cores="0")), unsupported=lambda _: (("cpu_cores", "mount the cpuset cgroup"),)
    )
    assert (error.reason, error.detail) == (Reason.PRECONDITION, "mount the cpuset cgroup")
    assert "cpu_cores" in error.message


def test_an_upload_that_is_gone_is_told() -> None:
    """The files must be sent again."""
    assert refusal(replace(SPEC, uploads=(UPLOAD,)), staged=lambda _: False).reason is Reason.PRECONDITION


def test_a_stop_has_bounds() -> None:
    """As in a spec."""
    check_stop(None, None)
    check_stop(9, 0)
    for signal, grace_ms in ((0, None), (65, None), (None, -1)):
        with pytest.raises(JobletError):
            check_stop(signal, grace_ms)
