"""Requests to messages and back: nothing is lost on the way, and everything malformed is refused by name."""

import signal
from typing import Any

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from common.config.limits import LIMIT_RANGES
from common.config.settings import LimitValues
from common.errors import JobletError, Reason
from common.identifiers import JobId
from common.messages import jobs
from common.messages.logs import StoreMetric
from proto.joblet.v1 import job_pb2, persist_pb2
from services.api import requests
from services.api.convert import LIMIT_FIELDS, NETWORKS, ON_FULL, STATES, job_to_proto, metric_to_proto, spec_to_proto
from tests.golden.samples import METRIC, RECORD_OF_JOB

names = st.from_regex(r"[A-Za-z0-9][A-Za-z0-9_.-]{0,20}", fullmatch=True)
words = st.text(st.characters(codec="utf-8", exclude_characters="\0"), max_size=20)
printable = st.text(st.sampled_from("abc é€x-_ =:"), max_size=20)
UPLOADS = {f"{n:032x}": jobs.Upload(id=f"{n:032x}", bytes=n, entries=1) for n in range(5)}
limits = st.fixed_dictionaries(
    {},
    optional={field: st.integers(low, high) for field, (low, high) in LIMIT_RANGES.items()}
    | {"cpu_cores": st.sampled_from(["0", "0-1,4"])},
).map(lambda fields: jobs.Limits(**fields))  # type: ignore[arg-type]  # each field has its own type
specs = st.builds(
    jobs.JobSpec,
    command=words.filter(bool),
    args=st.lists(words, max_size=4).map(tuple),
    name=names | st.just(""),
    labels=st.dictionaries(names, printable, max_size=3),
    environment=st.dictionaries(st.from_regex(r"[A-Z_][A-Z0-9_]{0,9}", fullmatch=True), words, max_size=3),
    workdir=st.sampled_from(["/work", "/tmp/x", "/process"]),
    work_bytes=st.none() | st.integers(4096, 2**40),
    limits=limits,
    volumes=st.lists(
        st.builds(jobs.VolumeMount, name=names, path=st.just("/data"), read_only=st.booleans()), max_size=2
    ).map(tuple),
    network=st.sampled_from(list(jobs.Network)),
    uploads=st.lists(st.sampled_from(list(UPLOADS.values())), unique=True, max_size=3).map(tuple),
    grace_ms=st.integers(0, 100_000),
    stop_signal=st.sampled_from([int(number) for number in signal.Signals]),
    on_full=st.sampled_from(list(jobs.OnFull)),
)


@given(spec=specs)
def test_a_spec_survives_the_way_there_and_back(spec: jobs.JobSpec) -> None:
    """What the executor stored and a client is shown is what the same client may send again."""
    sent = job_pb2.JobSpec.FromString(spec_to_proto(spec).SerializeToString())
    assert requests.job_spec(sent, UPLOADS.__getitem__) == spec


def test_limits_and_enumerations_bear_the_same_names_on_both_sides() -> None:
    """A field or value that is added on one side is missed here."""
    assert {field.name for field in job_pb2.Limits.DESCRIPTOR.fields} == set(LIMIT_FIELDS)
    assert set(LIMIT_RANGES) == set(LIMIT_FIELDS) - {"cpu_cores"}
    assert LimitValues.__struct_fields__ == LIMIT_FIELDS
    assert {field.name for field in job_pb2.Usage.DESCRIPTOR.fields} == set(jobs.Usage.__struct_fields__)
    sample = {field.name for field in persist_pb2.Metric.DESCRIPTOR.fields} - {"job_id", "timestamp"}
    assert sample == set(StoreMetric.__struct_fields__) - {"job", "time_ns"}
    assert {job_pb2.JobState.Name(number) for number in STATES.values()} == {state.name for state in jobs.State}
    assert {job_pb2.NetworkMode.Name(number) for number in NETWORKS.values()} == {one.name for one in jobs.Network}
    assert {job_pb2.OnFull.Name(number) for number in ON_FULL.values()} == {one.name for one in jobs.OnFull}


def test_a_record_is_shown_whole() -> None:
    """Times, outcome and usage; what is not set stays not set."""
    job = jobs.JobRecord(
        id=JobId("6fa459ea-ee8a-4ca4-894e-db77e160355e"),
        owner="ann",
        node_id="n",
        state=jobs.State.FAILED,
        spec=jobs.JobSpec(command="sh", name="x"),
        created_at_ns=1_500_000_000_000_000_001,
        exit_code=0,
        usage=jobs.Usage(cpu_time_us=1, memory_peak_bytes=2, oom_kills=3),
        last_sequence=7,
        lost_entries=3,
        lost_bytes=2**40,
    )
    shown = job_to_proto(job)
    assert (shown.created_at.seconds, shown.created_at.nanos) == (1_500_000_000, 1)
    assert shown.HasField("exit_code")
    assert not shown.HasField("signal")
    assert not shown.HasField("ended_at")
    assert (shown.name, shown.usage.oom_kills, shown.last_sequence) == ("x", 3, 7)
    assert (shown.lost_entries, shown.lost_bytes) == (3, 2**40)
    assert shown.spec.on_full == job_pb2.ON_FULL_UNSPECIFIED  # an older record, which does not say


def test_usage_and_samples_are_shown_whole() -> None:
    """Every figure arrives under its name."""
    figures = {name: number for number, name in enumerate(jobs.Usage.__struct_fields__, start=1)}
    shown = job_to_proto(msgspec.structs.replace(RECORD_OF_JOB, usage=jobs.Usage(**figures))).usage
    assert {field.name: value for field, value in shown.ListFields()} == figures
    fields = msgspec.structs.asdict(METRIC)
    metric = {field.name: value for field, value in metric_to_proto(METRIC).ListFields()}
    assert metric == {"job_id": fields.pop("job"), "timestamp": fields.pop("time_ns"), **fields}


def test_a_spec_without_a_network_gets_the_nodes_default() -> None:
    """And one that names a mode keeps it."""
    default = jobs.Network.BRIDGE
    assert requests.job_spec(spec(), UPLOADS.__getitem__, network=default).network is default
    named = requests.job_spec(spec(network=job_pb2.NONE), UPLOADS.__getitem__, network=default)
    assert named.network is jobs.Network.NONE


def test_a_spec_that_does_not_say_what_happens_when_it_is_full() -> None:
    """It gets the node's default, so that its record says what holds; one that says something keeps it."""
    for default in jobs.OnFull:
        assert requests.job_spec(spec(), UPLOADS.__getitem__, on_full=default).on_full is default
        named = requests.job_spec(spec(on_full=job_pb2.DROP), UPLOADS.__getitem__, on_full=default)
        assert named.on_full is jobs.OnFull.DROP


def spec(**fields: Any) -> job_pb2.JobSpec:
    """A spec with a command."""
    return job_pb2.JobSpec(**({"command": "true"} | fields))


REFUSED: list[tuple[str, job_pb2.JobSpec]] = [
    ("command", spec(command="")),
    ("command", spec(command="a\0b")),
    ("command", spec(command="x" * 5000)),
    ("args", spec(args=["x\0"])),
    ("args", spec(args=["x"] * 5000)),
    ("args", spec(args=["x" * 200_000])),
    ("args and environment", spec(args=["x" * 100_000] * 11)),
    ("name", spec(name="../x")),
    ("name", spec(name="-x")),
    ("label", spec(labels={"a b": "x"})),
    ("labels", spec(labels={"a": "\x1b[2J"})),
    ("labels", spec(labels={f"l{n}": "" for n in range(65)})),
    ("environment", spec(environment={"A=B": "x"})),
    ("environment", spec(environment={"A": "\0"})),
    ("environment", spec(environment={"1A": "x"})),
    ("workdir", spec(workdir="work")),
    ("workdir", spec(workdir="/work/../etc")),
    ("workdir", spec(workdir="/proc/self/fd/7")),
    ("workdir", spec(workdir="/proc")),
    ("work_bytes", spec(work_bytes=2**63)),
    ("limits.cpu_percent", spec(limits=job_pb2.Limits(cpu_percent=0))),
    ("limits.cpu_weight", spec(limits=job_pb2.Limits(cpu_weight=10_001))),
    ("limits.memory_bytes", spec(limits=job_pb2.Limits(memory_bytes=2**64 - 1))),
    ("limits.timeout_ms", spec(limits=job_pb2.Limits(timeout_ms=2**63))),
    ("limits.cpu_cores", spec(limits=job_pb2.Limits(cpu_cores="0;reboot"))),
    ("limits.cpu_cores", spec(limits=job_pb2.Limits(cpu_cores="4-1"))),
    ("limits.cpu_cores", spec(limits=job_pb2.Limits(cpu_cores="99999"))),
    ("limits.open_files", spec(limits=job_pb2.Limits(open_files=2))),
    ("limits.open_files", spec(limits=job_pb2.Limits(open_files=2**20 + 1))),
    ("limits.file_bytes", spec(limits=job_pb2.Limits(file_bytes=0))),
    ("limits.file_bytes", spec(limits=job_pb2.Limits(file_bytes=2**63))),
    ("volume", spec(volumes=[job_pb2.VolumeMount(name="..")])),
    ("volumes.path", spec(volumes=[job_pb2.VolumeMount(name="x", path="/a/../../b")])),
    ("network", spec(network=99)),
    ("on_full", spec(on_full=99)),
    ("grace_ms", spec(grace_ms=2**63)),
    ("stop_signal", spec(stop_signal="SIGNOPE")),
    ("upload_ids", spec(upload_ids=["0" * 32, "0" * 32])),
    ("priority", spec(priority=101)),
    ("priority", spec(priority=-(2**31))),
    ("start_at", spec(start_at={"seconds": 2**63 - 1})),
    ("start_at", spec(start_at={"seconds": 1, "nanos": -1})),
    ("start_at", spec(start_at={"seconds": 1, "nanos": 10**9})),
]


@pytest.mark.threat("D25")
@pytest.mark.threat("D27")
@pytest.mark.threat("C24")
@pytest.mark.threat("A02")
@pytest.mark.parametrize(("field", "message"), REFUSED, ids=[f"{n}-{field}" for n, (field, _) in enumerate(REFUSED)])
def test_malformed_fields_are_refused_by_name(field: str, message: job_pb2.JobSpec) -> None:
    """INVALID, and the text names the field."""
    with pytest.raises(JobletError) as refused:
        requests.job_spec(message, UPLOADS.__getitem__)
    assert refused.value.reason is Reason.INVALID
    assert field in refused.value.message


def test_secrets_are_names_in_the_spec_and_values_beside_it() -> None:
    """What is recorded and shown has names only; one that is a plain variable, too, is refused."""
    message = spec(environment={"P": "q"}, secret_environment={"B": "two", "A": "one"})
    parsed = requests.job_spec(message, UPLOADS.__getitem__)
    assert (parsed.secret_names, parsed.environment) == (("A", "B"), {"P": "q"})
    assert requests.secrets(message) == {"A": "one", "B": "two"}
    assert dict(spec_to_proto(parsed).secret_environment) == {"A": "", "B": ""}
    for wrong in ({"P": "s3cret"}, {"1": "s3cret"}, {"A": "s3cret\0"}):
        with pytest.raises(JobletError, match="secret_environment") as refused:
            requests.job_spec(spec(environment={"P": "q"}, secret_environment=wrong), UPLOADS.__getitem__)
        assert "s3cret" not in str(refused.value)


def test_a_time_of_start_is_within_a_year_and_may_be_over() -> None:
    """To the nanosecond, there and back; what is over stays as it was asked for, and means at once."""
    now_s = 1_800_000_000
    for seconds, nanos in ((now_s + 3600, 999_999_999), (now_s - 3600, 1), (now_s + 365 * 86400, 0), (0, 0)):
        message = spec(start_at={"seconds": seconds, "nanos": nanos}, priority=-100)
        parsed = requests.job_spec(message, UPLOADS.__getitem__, clock_ns=lambda: now_s * 10**9 + 5)
        assert (parsed.start_at_ns, parsed.priority) == (seconds * 10**9 + nanos, -100)
        shown = spec_to_proto(parsed)
        assert (shown.start_at.ToNanoseconds(), shown.priority) == (parsed.start_at_ns, -100)
    for seconds in (-1, now_s + 365 * 86400 + 1, 253_402_300_800):
        with pytest.raises(JobletError, match="start_at: the time is out of range") as refused:
            requests.job_spec(
                spec(start_at={"seconds": seconds}), UPLOADS.__getitem__, clock_ns=lambda: now_s * 10**9 + 5
            )
        assert refused.value.reason is Reason.INVALID
    assert requests.job_spec(spec(), UPLOADS.__getitem__).start_at_ns == 0


def test_nothing_is_parsed_as_a_shell_would() -> None:
    """Quotes, dollars, semicolons and spaces arrive as they were sent."""
    sent = spec(command="a b; c", args=["$(reboot)", "'", "*", ""])
    parsed = requests.job_spec(sent, UPLOADS.__getitem__)
    assert (parsed.command, parsed.args) == ("a b; c", ("$(reboot)", "'", "*", ""))


@pytest.mark.threat("C24")
def test_pages_and_filters_are_bounded() -> None:
    """Sizes, tokens and states out of range are refused; 0 is the default."""
    assert requests.page_size(0) == 100
    for refused in (
        lambda: requests.page_size(1001),
        lambda: requests.page_token("\0"),
        lambda: requests.page_token("x" * 513),
        lambda: requests.job_filter(job_pb2.JobFilter(states=[99])),  # type: ignore[list-item]  # open enumeration
        lambda: requests.stop_grace_ms(job_pb2.StopJobRequest(grace_ms=2**63)),
    ):
        with pytest.raises(JobletError):
            refused()
    assert requests.job_filter(job_pb2.JobFilter(states=[job_pb2.RUNNING])).states == (jobs.State.RUNNING,)
    assert requests.signal_number("signal", "TERM") == requests.signal_number("signal", "SIGTERM") == 15
