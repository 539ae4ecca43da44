"""jobc and worker-service: what they ask of a node, and what they print, letter for letter."""

import json
import os
import pty
import signal
from collections.abc import Iterator
from pathlib import Path

import grpc
import pytest

from cli.jobc.main import run as jobc
from cli.worker_service.main import run as worker_service
from proto.joblet.v1 import job_pb2, persist_pb2
from tests.contract.rnx_fake_node import FakeNode, Outcome, fake_node
from tests.contract.rnx_fake_services import chunk
from tests.waiting import SLOWNESS, wait_for

ID = "00000001-0000-4000-8000-000000000000"
UNKNOWN = "99999999-0000-4000-8000-000000000000"
JOBC, WORKER = "jobc", "worker_service"
FOLLOWING = [(JOBC, "logs"), (WORKER, "stream")]


@pytest.fixture
def node(tmp_path: Path) -> Iterator[FakeNode]:
    """A node of this test alone."""
    with fake_node(tmp_path) as served:
        yield served


def running(node: FakeNode) -> None:
    """Give the node one running job, ID."""
    node.jobs.add(1, state=job_pb2.RUNNING)


@pytest.mark.requirement("S3.4", "S3.5")
@pytest.mark.parametrize(
    ("words", "command", "args"),
    [
        (("sleep", "60"), "sleep", ["60"]),
        (("ls", "-l", "--help"), "ls", ["-l", "--help"]),
        (("--", "ls", "--", "-l"), "ls", ["--", "-l"]),
        (("sh", "-c", "echo $HOME; exit 3"), "sh", ["-c", "echo $HOME; exit 3"]),
        (("printf", "", "two words"), "printf", ["", "two words"]),
    ],
)
def test_jobc_start_prints_the_id_and_nothing_else(
    node: FakeNode, words: tuple[str, ...], command: str, args: list[str]
) -> None:
    """Everything from CMD on is the job's, word for word."""
    assert node.outcome(JOBC, "start", *words) == (0, f"{ID}\n".encode(), "")
    (asked,) = node.jobs.of(job_pb2.RunJobRequest)
    assert asked.spec == job_pb2.JobSpec(command=command, args=args)
    assert asked.idempotency_key


@pytest.mark.requirement("S2.17")
@pytest.mark.parametrize(
    ("words", "command", "args"),
    [
        (("-command", "sort", "largefile.txt -o sortedfile.txt"), "sort", ["largefile.txt", "-o", "sortedfile.txt"]),
        (("-command", "true"), "true", []),
        (
            ("--command=sh", "-c 'echo \"$HOME\" *.txt; exit 3' # x"),
            "sh",
            ["-c", 'echo "$HOME" *.txt; exit 3', "#", "x"],
        ),
        (("-la /tmp", "-command", "ls"), "ls", ["-la", "/tmp"]),
        (("-command", "ls", "-la"), "ls", ["-la"]),
        (("-command", "prog", "--", "-memory"), "prog", ["-memory"]),
        (("-command", "printf", "'' \"two words\" back\\ slash"), "printf", ["", "two words", "back slash"]),
    ],
)
def test_worker_service_start(node: FakeNode, words: tuple[str, ...], command: str, args: list[str]) -> None:
    """The one string is split by quotes and backslashes alone, and may begin with a dash."""
    assert node.outcome(WORKER, "start", *words) == (0, f"job with id {ID} started.\n".encode(), "")
    (asked,) = node.jobs.of(job_pb2.RunJobRequest)
    assert (asked.spec.command, list(asked.spec.args)) == (command, args)


@pytest.mark.requirement("S2.23", "S2.31")
def test_worker_service_start_with_limits(node: FakeNode) -> None:
    """CPU, memory and disk reach the node; what is not said is not set."""
    words = ("-cpu-percent", "50", "-memory", "100", "-io-weight=500", "--read-bps", "1MB", "-write-bps", "4KB")
    assert node.outcome(WORKER, "start", *words, "-command", "true").code == 0
    assert node.outcome(WORKER, "start", "-memory=0", "-command", "true").code == 0
    limited, zero = node.jobs.of(job_pb2.RunJobRequest)
    assert limited.spec.limits == job_pb2.Limits(
        cpu_percent=50, memory_bytes=100 * 2**20, io_weight=500, read_bytes_per_s=2**20, write_bytes_per_s=4096
    )
    assert zero.spec.limits == job_pb2.Limits(memory_bytes=0)


@pytest.mark.requirement("S3.6", "S2.18", "X18")
def test_stop(node: FakeNode) -> None:
    """One prints nothing, one its sentence; both wait for the end; signal and grace are the job's or given."""
    running(node)
    sentence = f"Success! job with id {ID} stopped.\n".encode()
    assert node.outcome(JOBC, "stop", ID) == (0, b"", "")
    assert node.outcome(WORKER, "stop", ID) == (0, sentence, "")
    assert node.outcome(JOBC, "stop", "--signal", "KILL", "--grace", "2s", ID[:8]) == (0, b"", "")
    assert node.outcome(WORKER, "stop", "-signal=9", ID[:8]) == (0, sentence, "")
    assert node.jobs.of(job_pb2.StopJobRequest) == [
        job_pb2.StopJobRequest(job_id=ID),
        job_pb2.StopJobRequest(job_id=ID),
        job_pb2.StopJobRequest(job_id=ID[:8], signal="SIGKILL", grace_ms=2000),
        job_pb2.StopJobRequest(job_id=ID[:8], signal="SIGKILL"),
    ]
    assert len(node.jobs.of(job_pb2.WaitJobRequest)) == 4


def test_stop_of_a_job_that_is_withdrawn_at_once(node: FakeNode) -> None:
    """A queued job that ends with the answer is not waited for; a restart while waiting is lived through."""
    node.jobs.add(1, state=job_pb2.CANCELED)
    assert node.outcome(JOBC, "stop", ID) == (0, b"", "")
    assert node.jobs.of(job_pb2.WaitJobRequest) == []
    node.jobs.jobs[ID].state = job_pb2.RUNNING
    node.jobs.stream_breaks = [0]
    assert node.outcome(JOBC, "stop", ID) == (0, b"", "")
    assert len(node.jobs.of(job_pb2.WaitJobRequest)) == 2


ENDS = [
    (job_pb2.Job(state=job_pb2.SCHEDULED), "running", "is running"),
    (job_pb2.Job(state=job_pb2.PENDING), "running", "is running"),
    (job_pb2.Job(state=job_pb2.PENDING, queue_position=3), "running", "is running"),
    (job_pb2.Job(state=job_pb2.STARTING), "running", "is running"),
    (job_pb2.Job(state=job_pb2.RUNNING, pid=7), "running", "is running"),
    (job_pb2.Job(state=job_pb2.COMPLETED, exit_code=0), "finished (exit code: 0)", "has stopped"),
    (job_pb2.Job(state=job_pb2.FAILED, exit_code=7), "finished (exit code: 7)", "has stopped"),
    (job_pb2.Job(state=job_pb2.STOPPED, signal=9), "stopped (signal: 9)", "has stopped"),
    (job_pb2.Job(state=job_pb2.STOPPED, exit_code=143), "finished (exit code: 143)", "has stopped"),
    (job_pb2.Job(state=job_pb2.FAILED, signal=11), "stopped (signal: 11)", "has stopped"),
    (job_pb2.Job(state=job_pb2.FAILED, signal=9, oom_killed=True), "stopped (signal: 9)", "has stopped"),
    (job_pb2.Job(state=job_pb2.TIMED_OUT, signal=15), "stopped (signal: 15)", "has stopped"),
    (job_pb2.Job(state=job_pb2.FAILED, reason="could not be started: x"), "failed to start", "has stopped"),
    (job_pb2.Job(state=job_pb2.STOPPED, reason="stopped before its command ran"), "stopped", "has stopped"),
    (job_pb2.Job(state=job_pb2.CANCELED, reason="canceled before it started"), "canceled", "has stopped"),
    (job_pb2.Job(state=job_pb2.LOST, reason="its monitor ended"), "lost", "has stopped"),
]
REMARKS = {
    0: "it is scheduled and has not started",
    2: "it waits for its turn and has not started: place 3",
    10: "it ran out of memory",
    11: "it reached its run time limit",
    12: "could not be started: x",
    13: "stopped before its command ran",
    14: "canceled before it started",
    15: "its monitor ended",
}


@pytest.mark.requirement("S3.8", "S2.19", "X8")
@pytest.mark.parametrize("number", range(len(ENDS)))
def test_status_and_query_of_every_state(node: FakeNode, number: int, capfd: pytest.CaptureFixture[str]) -> None:
    """The forms of the sources, and what they cannot say on stderr; the exit code is 0 whatever the job's."""
    job, status, query = ENDS[number]
    node.jobs.add(1).MergeFrom(job)
    assert jobc(["--config", str(node.config), "status", ID]) == 0
    remark = f"jobc: job {ID}: {REMARKS[number]}\n" if number in REMARKS else ""
    assert capfd.readouterr() == (f"{status}\n", remark)
    assert worker_service(["--config", str(node.config), "query", ID[:8]]) == 0
    assert capfd.readouterr() == (f"job with id {ID} {query}.\n", "")


def test_every_state_has_a_status() -> None:
    """A state that is added to the contract is decided here."""
    assert {job.state for job, _, _ in ENDS} == set(job_pb2.JobState.values()) - {0}


@pytest.mark.requirement("S3.7")
def test_jobc_logs_letter_for_letter(node: FakeNode) -> None:
    """The keys in their order, the spaces of the sample, a time with a fraction; a line has its line end in `log`."""
    running(node)
    first = chunk(1, b'say "hi"\\\n\n')
    first.timestamp = 1_643_018_400_000_000_000
    node.jobs.chunks = [
        first,
        chunk(3, b"\x1b[1m\xc2\x9b\n", stream=persist_pb2.STDERR),
        chunk(4, b"rest", partial=True),
    ]
    assert node.outcome(JOBC, "logs", ID) == (
        0,
        b'{ "log": "say \\"hi\\"\\\\\\n", "stream": "stdout", "time": "2022-01-24T10:00:00.0Z" }\n'
        b'{ "log": "\\n", "stream": "stdout", "time": "2022-01-24T10:00:00.0Z" }\n'
        b'{ "log": "\\u001b[1m\\u009b\\n", "stream": "stderr", "time": "2023-11-14T22:13:20.25Z" }\n'
        b'{ "log": "rest", "stream": "stdout", "time": "2023-11-14T22:13:20.25Z" }\n',
        "",
    )


@pytest.mark.requirement("S3.7", "X9")
def test_jobc_logs_of_bytes(node: FakeNode) -> None:
    """What is not UTF-8 is replaced, a character in two pieces is one, and all `log`s together are the output."""
    running(node)
    euro = "€".encode()
    node.jobs.chunks = [
        chunk(1, b"\xff\0\n"),
        chunk(2, euro[:1], partial=True),
        chunk(3, b"x\n", stream=persist_pb2.STDERR),
        chunk(4, euro[1:] + b"\r\n"),
        job_pb2.LogChunk(first_sequence=5, lines=2, gap=job_pb2.Gap(reason="journal_full")),
        chunk(7, b"end" + euro[:2], partial=True),
    ]
    outcome = node.outcome(JOBC, "logs", ID)
    told = "entries 5 to 6 (2 entries): dropped by the node: the job's journal was full"
    assert (outcome.code, outcome.err) == (0, f"jobc: output is missing: {told}\n")
    assert outcome.out.isascii()
    objects = [json.loads(line) for line in outcome.out.splitlines()]
    assert [(one["log"], one["stream"]) for one in objects] == [
        ("�\0\n", "stdout"),
        ("x\n", "stderr"),
        ("€\r\n", "stdout"),
        ("end", "stdout"),
        ("�", "stdout"),
    ]
    assert all(list(one) == ["log", "stream", "time"] for one in objects)


@pytest.mark.requirement("S2.20")
def test_worker_service_streams_bytes(node: FakeNode) -> None:
    """Both streams in their order, byte for byte, an unfinished line unfinished; what is missing is on stderr."""
    running(node)
    node.jobs.chunks = [
        chunk(1, b"a\x1b[1m\xff\0\r\n"),
        chunk(2, b"err\n", stream=persist_pb2.STDERR),
        job_pb2.LogChunk(first_sequence=3, lines=1, gap=job_pb2.Gap(reason="journal_full")),
        chunk(4, b"rest\xe2", partial=True),
    ]
    told = "worker-service: output is missing: entry 3 (1 entry): dropped by the node: the job's journal was full\n"
    assert node.outcome(WORKER, "stream", ID[:8]) == (0, b"a\x1b[1m\xff\0\r\nerr\nrest\xe2", told)
    assert node.jobs.of(job_pb2.StreamLogsRequest)[0] == job_pb2.StreamLogsRequest(job_id=ID, follow=True)


@pytest.mark.threat("C20")
def test_a_terminal_gets_no_control_characters(node: FakeNode) -> None:
    """worker-service shows them; with -raw they pass."""
    running(node)
    node.jobs.chunks = [chunk(1, b"\x1b[2J\xff" + "é\n".encode())]
    assert on_a_terminal(node, "stream", ID) == "\\x1b[2J\\xffé\r\n".encode()
    assert on_a_terminal(node, "stream", "-raw", ID) == b"\x1b[2J\xff" + "é\r\n".encode()


def on_a_terminal(node: FakeNode, *arguments: str) -> bytes:
    """What worker-service writes when stdout is a terminal."""
    leader, follower = pty.openpty()
    process = node.start(*arguments, program=WORKER, stdout=follower)
    os.close(follower)
    process.communicate(timeout=30)
    shown = os.read(leader, 65536)  # what was written stays readable when the other side is closed
    os.close(leader)
    assert process.returncode == 0
    return shown


@pytest.mark.threat("F27")
@pytest.mark.parametrize(("program", "verb"), FOLLOWING)
def test_a_broken_stream_goes_on(node: FakeNode, program: str, verb: str) -> None:
    """At its sequence, whatever breaks, also within a character: nothing is missing or comes twice."""
    running(node)
    euro = "€".encode()
    node.jobs.chunks = [chunk(1, b"1\n2\n"), chunk(3, euro[:1], partial=True), chunk(4, euro[1:] + b"\n")]
    node.jobs.stream_breaks = [1, 1, 0]
    outcome = node.outcome(program, verb, ID)
    assert (outcome.code, outcome.err) == (0, "")
    assert written(program, outcome.out) == "1\n2\n€\n"
    assert [one.from_sequence for one in node.jobs.of(job_pb2.StreamLogsRequest)] == [0, 3, 4, 4]


def written(program: str, out: bytes) -> str:
    """What the job wrote, as the program told it."""
    return "".join(json.loads(line)["log"] for line in out.splitlines()) if program == JOBC else out.decode()


@pytest.mark.parametrize(("program", "verb"), FOLLOWING)
def test_a_restarted_node_is_found_again(node: FakeNode, program: str, verb: str) -> None:
    """The connection is refused for a while; then the stream goes on where it was."""
    running(node)
    node.jobs.chunks = [chunk(1, b"1\n")]
    node.jobs.end_gate.clear()
    process = node.start(verb, ID, program=program)
    assert process.stdout is not None
    assert written(program, process.stdout.readline()) == "1\n"
    node.stop()
    node.jobs.chunks.append(chunk(2, b"2\n"))
    node.jobs.end_gate.set()
    node.serve()
    out, err = process.communicate(timeout=30)
    assert (process.returncode, written(program, out), err) == (0, "2\n", b"")


@pytest.mark.parametrize(
    ("program", "verb", "command"),
    [(JOBC, "logs", f"jobc logs --from-seq 3 {ID}"), (WORKER, "stream", f"worker-service stream -from-seq 3 {ID}")],
)
def test_who_gives_up_says_how_to_go_on(node: FakeNode, program: str, verb: str, command: str) -> None:
    """5, with the command in the program's own words; and that command goes on there."""
    running(node)
    node.jobs.chunks = [chunk(1, b"1\n2\n")]
    node.jobs.end_gate.clear()
    outcome = node.outcome(program, "--timeout", f"{10 * SLOWNESS:.0f}s", verb, ID)
    assert (outcome.code, written(program, outcome.out)) == (5, "1\n2\n")
    assert f"go on with `{command}`" in outcome.err
    assert outcome.err.count("\n") == 1
    node.jobs.end_gate.set()
    node.jobs.chunks.append(chunk(3, b"3\n"))
    outcome = node.outcome(program, *command.split()[1:])
    assert (outcome.code, written(program, outcome.out)) == (0, "3\n")


@pytest.mark.parametrize(("program", "verb"), FOLLOWING)
def test_interrupt_and_broken_pipe_are_quiet(node: FakeNode, program: str, verb: str) -> None:
    """Ctrl-C: 130; a reader that leaves: 141; nothing on stderr either way."""
    running(node)
    node.jobs.chunks = [chunk(1, b"1\n")]
    node.jobs.end_gate.clear()
    process = node.start(verb, ID, program=program)
    assert process.stdout is not None
    assert process.stdout.readline()
    process.send_signal(signal.SIGINT)
    assert process.communicate(timeout=30) == (b"", b"")
    assert process.returncode == 130
    process = node.start(verb, ID, program=program)
    assert process.stdout is not None
    assert process.stderr is not None
    assert process.stdout.readline()
    process.stdout.close()
    node.jobs.chunks.append(chunk(2, b"2\n"))
    node.stop()
    node.serve()
    assert wait_for(lambda: process.poll() is not None, timeout_s=30, what="the program to notice that nobody reads")
    assert (process.returncode, process.stderr.read()) == (141, b"")
    process.stderr.close()


@pytest.mark.threat("D23")
@pytest.mark.parametrize(
    ("program", "words", "out"),
    [
        (JOBC, ("start", "x"), f"{ID}\n"),
        (WORKER, ("start", "-command", "x"), f"job with id {ID} started.\n"),
    ],
)
def test_a_start_is_repeated_under_its_key(node: FakeNode, program: str, words: tuple[str, ...], out: str) -> None:
    """When the answer is lost the job is not started twice."""
    node.jobs.run_failures = [grpc.StatusCode.UNAVAILABLE, grpc.StatusCode.UNAVAILABLE]
    node.jobs.accept_before_failure = True
    assert node.outcome(program, *words) == (0, out.encode(), "")
    assert len({one.idempotency_key for one in node.jobs.of(job_pb2.RunJobRequest)}) == 1
    assert (len(node.jobs.of(job_pb2.RunJobRequest)), len(node.jobs.jobs)) == (3, 1)


@pytest.mark.parametrize(
    ("program", "words", "expected"),
    [
        (JOBC, ("status", UNKNOWN), (3, "no such job: see rnx job list")),
        (JOBC, ("logs", UNKNOWN), (3, "no such job: see rnx job list")),
        (JOBC, ("stop", UNKNOWN), (3, "no such job: see rnx job list")),
        (JOBC, ("stop", "--signal", "NONE", ID), (2, "no such signal")),
        (JOBC, ("status", "short"), (2, "malformed job id 'short'")),
        (JOBC, ("start",), (2, "Missing argument 'CMD'")),
        (JOBC, ("query", ID), (2, "No such command 'query'")),
        (JOBC, ("--node", "other", "status", ID), (2, "has no context 'other'")),
        (JOBC, ("--config", "/no/such/file", "status", ID), (2, "/no/such/file")),
        (WORKER, ("query", UNKNOWN), (3, "no such job: see rnx job list")),
        (WORKER, ("stream", UNKNOWN), (3, "no such job: see rnx job list")),
        (WORKER, ("stop", UNKNOWN), (3, "no such job: see rnx job list")),
        (WORKER, ("query", "short"), (2, "malformed job id 'short'")),
        (WORKER, ("start", "x"), (2, "Missing option '-command'")),
        (WORKER, ("start", "-command", "sort", "'open"), (2, "open quote")),
        (WORKER, ("start", "-command", "sort", "two", "words"), (2, "ARGS is one string and here are 2")),
        (WORKER, ("start", "-command", "sort", "-memroy=5"), (2, "did you mean -memory?")),
        (WORKER, ("start", "-command", "sort", "-memory", "lots"), (2, "malformed size")),
        (WORKER, ("start", "-cpu-percent", "0", "-command", "x"), (2, "malformed percentage")),
        (WORKER, ("-node", "other", "query", ID), (2, "has no context 'other'")),
    ],
)
def test_errors_are_one_line_with_their_exit_code(
    node: FakeNode, program: str, words: tuple[str, ...], expected: tuple[int, str], capfd: pytest.CaptureFixture[str]
) -> None:
    """What, and what to do; nothing on stdout, and nothing is started."""
    code, told = expected
    running(node)
    run = jobc if program == JOBC else worker_service
    assert run(["--config", str(node.config), *words]) == code
    out, err = capfd.readouterr()
    assert (out, err.count("\n"), told in err) == ("", 1, True), err
    assert err.startswith(f"{program.replace('_', '-')}: ")
    assert node.jobs.of(job_pb2.RunJobRequest) == []


@pytest.mark.parametrize("program", [JOBC, WORKER])
def test_a_refusal_is_4_and_an_absent_node_5(node: FakeNode, program: str) -> None:
    """Both in one line of the program's own name."""
    start = ("start", "x") if program == JOBC else ("start", "-command", "x")
    name = program.replace("_", "-")
    node.jobs.run_failures = [grpc.StatusCode.PERMISSION_DENIED]
    assert node.outcome(program, *start) == Outcome(4, b"", f"{name}: not now: later\n")
    running(node)
    node.stop()
    outcome = node.outcome(program, "--timeout", "5s", "status" if program == JOBC else "query", ID)
    node.serve()
    assert (outcome.code, outcome.out, outcome.err.count("\n")) == (5, b"", 1)
    assert outcome.err.startswith(f"{name}: nothing answers at 127.0.0.1:{node.port}")
