"""jobc, worker-service and the worker facade on a real node: their output, their rules, and a restart under them."""

import json
import re
import subprocess
import sys
from collections.abc import Callable

import pytest

from tests.e2e.node import PROGRAMS, Node, read_all
from tests.waiting import SLOWNESS, wait_for

ID = re.compile(r"[0-9a-f]{8}-[0-9a-f]{4}-4[0-9a-f]{3}-[89ab][0-9a-f]{3}-[0-9a-f]{12}")
UNKNOWN = "6fa459ea-ee8a-4ca4-894e-db77e160355e"

BARE = r"""
import os, sys
os.environ["GRPC_VERBOSITY"] = "NONE"
import grpc
from google.protobuf import json_format
from proto.joblet.v1 import worker_pb2, worker_pb2_grpc

address, certs, who, method, text = sys.argv[1:]
read = lambda name: open(f"{certs}/{name}", "rb").read()
credentials = grpc.ssl_channel_credentials(read("ca.crt"), read(f"{who}.key"), read(f"{who}.crt"))
with grpc.secure_channel(address, credentials) as channel:
    stub = worker_pb2_grpc.WorkerServiceStub(channel)
    request = json_format.Parse(text, getattr(worker_pb2, method + "Request")())
    try:
        if method == "Stream":
            for message in stub.Stream(request, timeout=60):
                sys.stdout.buffer.write(message.output.encode())
                sys.stdout.flush()
        else:
            answer = getattr(stub, method)(request, timeout=30)
            print(json_format.MessageToJson(answer, indent=None, always_print_fields_with_no_presence=True))
    except grpc.RpcError as error:
        sys.exit(error.code().name)
"""
"""A client that knows nothing of joblet but the stubs of worker.proto. Exits with the status on stderr."""


def small(node: Node, program: str, *arguments: str, context: str = "default") -> tuple[int, str, str]:
    """Exit code, stdout and stderr of a small client."""
    command = [str(PROGRAMS / program), "--config", str(node.config), "--node", context, *arguments]
    done = subprocess.run(command, capture_output=True, stdin=subprocess.DEVNULL, timeout=120, check=False)
    return done.returncode, done.stdout.decode(), done.stderr.decode()


def bare_command(node: Node, who: str, method: str, **fields: object) -> list[str]:
    """The command line of a bare gRPC client, as the identity of a file in the node's certs."""
    address = f"127.0.0.1:{node.port}"
    return [sys.executable, "-c", BARE, address, str(node.base / "certs"), who, method, json.dumps(fields)]


def bare(node: Node, who: str, method: str, **fields: object) -> tuple[bytes, str]:
    """What a bare gRPC client got, and the status of a refusal."""
    done = subprocess.run(bare_command(node, who, method, **fields), capture_output=True, timeout=120, check=False)
    return done.stdout, done.stderr.decode().strip()


def started(node: Node, who: str, *words: str, **resources: int) -> str:
    """Start a job over the facade; its id."""
    fields: dict[str, object] = {"name": words[0], "args": words[1:]}
    if resources:
        fields["resources"] = resources
    answer, refusal = bare(node, who, "Start", **fields)
    assert refusal == ""
    return str(json.loads(answer)["jobID"])


@pytest.mark.requirement("S3.4", "S3.5", "S3.6", "S3.8", "X18")
def test_jobc_start_status_stop(node: Node) -> None:
    """Killed by signal 9, as in the sample; ended by TERM; and by KILL after the grace when TERM is not heeded."""
    code, out, err = small(node, "jobc", "start", "sleep", "1000")
    job = out.strip()
    assert (code, err) == (0, "")
    assert ID.fullmatch(job)
    assert out == f"{job}\n"
    assert small(node, "jobc", "status", job) == (0, "running\n", "")
    assert small(node, "jobc", "stop", "--signal", "KILL", job) == (0, "", "")
    assert small(node, "jobc", "status", job) == (0, "stopped (signal: 9)\n", "")
    code, _, err = small(node, "jobc", "stop", job)
    assert (code, err.count("\n")) == (4, 1)
    job = small(node, "jobc", "start", "sleep", "1000")[1].strip()
    node.wait_for_state(job, "running")
    assert small(node, "jobc", "stop", job) == (0, "", "")
    assert small(node, "jobc", "status", job) == (0, "stopped (signal: 15)\n", "")
    job = small(node, "jobc", "start", "sh", "-c", "trap '' TERM; echo deaf; while :; do sleep 1; done")[1].strip()
    wait_for(lambda: node.entries(job), what="the job to be deaf")
    assert small(node, "jobc", "stop", "--grace", "200ms", job) == (0, "", "")
    assert small(node, "jobc", "status", job) == (0, "stopped (signal: 9)\n", "")


@pytest.mark.requirement("S3.7", "S3.8", "X8")
def test_jobc_logs(node: Node) -> None:
    """Every entry is one object with the keys in their order; together they are what the job wrote."""
    script = r"echo out; echo err >&2; printf 'bad \377\n\342'; sleep 0.5; printf '\202\254 no end'; exit 3"
    job = small(node, "jobc", "start", "sh", "-c", script)[1].strip()
    code, out, err = small(node, "jobc", "logs", job)
    assert (code, err) == (0, "")
    shape = re.compile(r'\{ "log": ".*", "stream": "std(out|err)", "time": "\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d+Z" \}')
    assert all(shape.fullmatch(line) for line in out.splitlines())
    objects = [json.loads(line) for line in out.splitlines()]
    assert all(list(one) == ["log", "stream", "time"] for one in objects)
    assert "".join(one["log"] for one in objects if one["stream"] == "stdout") == "out\nbad �\n€ no end"
    assert [one["log"] for one in objects if one["stream"] == "stderr"] == ["err\n"]
    assert [one["time"] for one in objects] == sorted(one["time"] for one in objects)
    assert small(node, "jobc", "status", job) == (0, "finished (exit code: 3)\n", "")
    missing = small(node, "jobc", "start", "/no/such/program")[1].strip()
    node.wait_for_state(missing, "failed")
    code, out, err = small(node, "jobc", "status", missing)
    assert (code, out, err.count("\n")) == (0, "failed to start\n", 1)
    assert "/no/such/program" in err


@pytest.mark.requirement("S2.17", "S2.18", "S2.19", "S2.20")
def test_worker_service(node: Node) -> None:
    """Its sentences to the letter, and raw bytes; what ended by itself has stopped, too."""
    script = "-c 'echo out; echo err >&2; printf \"\\377\\000 no end\"; sleep 1000'"
    code, out, err = small(node, "worker-service", "start", "-command", "sh", script)
    job = out.split()[3]
    assert ID.fullmatch(job)
    assert (code, out, err) == (0, f"job with id {job} started.\n", "")
    assert small(node, "worker-service", "query", job) == (0, f"job with id {job} is running.\n", "")
    wait_for(lambda: len(node.entries(job)) == 3, what="all output to be there")
    assert small(node, "worker-service", "stop", job) == (0, f"Success! job with id {job} stopped.\n", "")
    assert small(node, "worker-service", "query", job) == (0, f"job with id {job} has stopped.\n", "")
    command = [str(PROGRAMS / "worker-service"), "-config", str(node.config), "stream", job]
    streamed = subprocess.run(command, capture_output=True, timeout=60, check=False)
    assert (streamed.returncode, streamed.stderr) == (0, b"")
    # Which of the two streams was read first is the monitor's matter; each is whole.
    assert streamed.stdout.replace(b"err\n", b"") == b"out\n\xff\0 no end"
    limited = small(node, "worker-service", "start", "-memory", "64", "-cpu-percent", "50", "-command", "true")[1]
    limits = node.status(limited.split()[3])["limits"]
    assert (limits["memory_bytes"], limits["cpu_percent"]) == (64 * 2**20, 50)


@pytest.mark.requirement("S2.23", "S4.17", "X3", "X19")
@pytest.mark.parametrize(
    ("program", "start", "look", "stop"),
    [
        ("jobc", ("start", "true"), "status", "stop"),
        ("worker-service", ("start", "-command", "true"), "query", "stop"),
    ],
)
def test_small_clients_and_roles(node: Node, program: str, start: tuple[str, ...], look: str, stop: str) -> None:
    """A reader looks at any job and starts and stops none; for a user the jobs of others do not exist."""
    job = node.detached("--", "true")
    node.ok("job", "wait", job)
    for words, context, code in (
        (start, "reader", 4),
        ((look, job), "reader", 0),
        ((stop, job), "reader", 4),
        ((look, job), "user", 3),
        ((look, UNKNOWN), "default", 3),
        (start, "user", 0),
    ):
        got, out, err = small(node, program, *words, context=context)
        assert (got, bool(out), err.count("\n")) == (code, code == 0, int(code != 0)), (words, context, err)


@pytest.mark.requirement("S4.7", "S4.8", "S4.9", "S4.10", "S4.11", "S4.12", "X9")
def test_the_facade_for_a_client_of_its_own(node: Node) -> None:
    """Start, query, stream and stop with nothing but the stubs of worker.proto; bytes become text; roles hold."""
    script = r"printf 'bad \377\n\342'; sleep 0.5; printf '\202\254\n'; exec sleep 1000"
    job = started(node, "user", "sh", "-c", script, memory_bytes=64 * 2**20)
    assert node.status(job)["limits"]["memory_bytes"] == 64 * 2**20
    running = node.wait_for_state(job, "running")
    answer, _ = bare(node, "user", "Query", jobID=job)
    assert json.loads(answer) == {"pid": running["pid"], "exitCode": -1, "exited": False}
    wait_for(lambda: "€".encode() in node.ok("job", "log", job, "--no-follow"), what="the output")
    assert bare(node, "writer", "Query", jobID=job) == (answer, "")
    assert bare(node, "reader", "Stop", jobID=job) == (b"", "PERMISSION_DENIED")
    assert bare(node, "reader", "Start", name="true") == (b"", "PERMISSION_DENIED")
    others = node.detached("--", "true")
    for method in ("Query", "Stop", "Stream"):
        assert bare(node, "user", method, jobID=others) == (b"", "NOT_FOUND")
        assert bare(node, "user", method, jobID=UNKNOWN) == (b"", "NOT_FOUND")
    assert bare(node, "user", "Stop", jobID=job) == (b"{}\n", "")
    text, refusal = bare(node, "reader", "Stream", jobID=job)
    assert (text.decode(), refusal) == ("bad �\n€\n", "")
    answer, _ = bare(node, "reader", "Query", jobID=job)
    assert json.loads(answer) == {"pid": node.status(job)["pid"] or 0, "exitCode": -1, "exited": True}
    done = started(node, "writer", "sh", "-c", "exit 7")
    assert bare(node, "writer", "Stream", jobID=done) == (b"", "")
    assert json.loads(bare(node, "writer", "Query", jobID=done)[0])["exitCode"] == 7
    assert bare(node, "writer", "Start", name="", args=["x"]) == (b"", "INVALID_ARGUMENT")


@pytest.mark.threat("F27")
@pytest.mark.threat("F38")
def test_api_is_killed_under_streams(own_node: Callable[..., Node]) -> None:
    """The facade's stream ends with UNAVAILABLE, for it cannot be resumed; the small clients go on by themselves."""
    node = own_node()
    job = started(node, "default", "sh", "-c", "echo begun; exec sleep 300")
    facade = subprocess.Popen(
        bare_command(node, "default", "Stream", jobID=job), stdout=subprocess.PIPE, stderr=subprocess.PIPE
    )
    command = ["--config", str(node.config)]
    clients = [
        subprocess.Popen([str(PROGRAMS / program), *command, verb, job], stdout=subprocess.PIPE, stderr=subprocess.PIPE)
        for program, verb in (("jobc", "logs"), ("worker-service", "stream"))
    ]
    everybody = [facade, *clients]
    try:
        heard = [read_all(process.stdout) for process in everybody]
        told = [read_all(process.stderr) for process in everybody]
        wait_for(lambda: all(b"begun" in reader.data for reader in heard), timeout_s=30, what="all to hear the job")
        node.kill("api")
        assert told[0].finished().strip() == b"UNAVAILABLE"
        assert heard[0].finished() == b"begun\n"
        wait_for(lambda: small(node, "jobc", "status", job)[0] == 0, timeout_s=60, what="the node to be back")
        assert small(node, "jobc", "stop", job) == (0, "", "")
        logs, stream = (reader.finished() for reader in heard[1:])
        assert [json.loads(line)["log"] for line in logs.splitlines()] == ["begun\n"]
        assert stream == b"begun\n"
        assert [reader.finished() for reader in told[1:]] == [b"", b""]
        assert [process.wait(30 * SLOWNESS) for process in clients] == [0, 0]
    finally:
        for process in everybody:
            process.kill()
            process.wait()
