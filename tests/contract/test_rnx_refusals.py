"""What rnx says and answers when something is wrong: usage, refusals, and connections that do not come about."""

import socket
import ssl
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from datetime import timedelta
from pathlib import Path

import pytest

from proto.joblet.v1 import job_pb2
from tests.certificates import Authority
from tests.contract.rnx_fake_node import FakeNode, fake_node


@pytest.fixture
def node(tmp_path: Path) -> Iterator[FakeNode]:
    """A node of this test alone."""
    with fake_node(tmp_path) as served:
        yield served


@pytest.mark.parametrize(
    ("words", "code", "told"),
    [
        ("job status 99999999", 3, "no such job: see rnx job list"),
        ("job cancel 00000001", 4, "job runs already: stop it instead"),
        ("job status short", 2, "malformed job id 'short'"),
        ("job log 00000001 --since yesterday", 2, "malformed time"),
        ("job run --max-memory lots x", 2, "malformed size"),
        ("job run --max-cpu 50 --cpus 1 x", 2, "give one of them"),
        ("job run --env NOT_SET_ANYWHERE x", 2, "NOT_SET_ANYWHERE is not set here"),
        ("job run --upload /no/such/file x", 2, "/no/such/file"),
        ("job run --pids 00000000000000000000099999999999 x", 2, "malformed number"),
        ("job list --owner \udcff", 2, "'--owner' is not UTF-8"),
        ("job delete-all --yes --label a=\udcff", 2, "'--label' is not UTF-8"),
        ("job run --cpu-cores \udcff x", 2, "'--cpu-cores' is not UTF-8"),
        ("job run --volume data:/\udcff x", 2, "'--volume' is not UTF-8"),
        ("job log 00000001 --filter \udcff", 2, "'--filter' is not UTF-8"),
        ("node audit --who \udcff", 2, "'--who' is not UTF-8"),
        ("volume create \udcff --size 1GB", 2, "'NAME' is not UTF-8"),
        ("--node other job list", 2, "has no context 'other'"),
        ("job", 2, ""),
        ("job fly", 2, "No such command"),
    ],
)
def test_table_of_exit_codes(
    node: FakeNode, words: str, code: int, told: str, capfd: pytest.CaptureFixture[str]
) -> None:
    """Each kind of failure has its code, and says in one line what and what to do."""
    node.jobs.add(1, state=job_pb2.RUNNING)
    assert node.call(*words.split()) == code
    out, err = capfd.readouterr()
    assert out == ""
    assert told in err
    assert err.count("\n") == 1 or not told


@pytest.mark.parametrize("option", ["--env", "--secret-env"])
def test_a_variable_that_is_no_text_is_named_without_its_value(
    node: FakeNode, option: str, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    """What was copied from the environment here is checked as what was written."""
    monkeypatch.setenv("TOKEN", "hunter2\udcff")
    assert node.call("run", option, "TOKEN", "x") == 2
    assert capfd.readouterr().err.startswith("rnx: 'the value of TOKEN' is not UTF-8: ")


def test_a_secret_without_a_name_is_not_told(node: FakeNode, capfd: pytest.CaptureFixture[str]) -> None:
    """Whoever forgot the name finds his secret in no log of a pipeline."""
    assert node.call("run", "--secret-env", "=hunter2", "x") == 2
    err = capfd.readouterr().err
    assert "without a name" in err
    assert "hunter2" not in err


def test_files_that_do_not_belong_together_are_named(node: FakeNode) -> None:
    """To gRPC all of these are a closed connection, for which nothing in the node's audit log tells the reason."""
    alice, bob = node.authority.client("alice"), Authority("other").client("bob")
    for identity, ca, told in (
        (alice._replace(key=bob.key), None, "the key of this context is not the one that its cert was made with"),
        (alice._replace(key=alice.cert), None, "the key of this context cannot be read"),
        (alice, alice.key, "the ca of this context cannot be read"),
    ):
        node.write_config(identity, ca=ca)
        outcome = node.rnx("job", "list")
        assert (outcome.code, outcome.out) == (5, b"")
        assert told in outcome.err
        assert outcome.err.count("\n") == 1


def test_no_node_is_exit_code_5(node: FakeNode) -> None:
    """A query does not wait for a node that is not there; it says where it looked."""
    node.stop()
    outcome = node.rnx("job", "list")
    assert outcome.code == 5
    assert outcome.err == (
        f"rnx: nothing answers at 127.0.0.1:{node.port} (context default): start the node with `joblet up`, or correct "
        "the address of this context\n"
    )
    node.serve()


@pytest.mark.parametrize("verb", ["job list", "run -d x"])
def test_a_refused_certificate_is_explained(node: FakeNode, verb: str) -> None:
    """All that gRPC knows is "Socket closed"; rnx says what that means, and gives up soon."""
    node.write_config(Authority("stranger").client("mallory"))
    outcome = node.rnx(*verb.split())
    assert (outcome.code, outcome.out) == (5, b"")
    assert "closed the connection: if that repeats, it refuses this certificate" in outcome.err
    assert outcome.err.count("\n") == 1


def test_an_expired_certificate_is_named(node: FakeNode) -> None:
    """The certificate's own date tells more than the closed connection; one line, at once, with the repair."""
    node.write_config(node.authority.issue(["alice"], not_after=-timedelta(hours=1)))
    for verb in (["job", "list"], ["--json", "job", "list"], ["run", "-d", "x"]):
        outcome = node.rnx(*verb)
        assert (outcome.code, outcome.out) == (5, b"")
        assert "the certificate expired at 20" in outcome.err
        assert outcome.err.endswith(": renew it where its CA is: joblet certs renew cert\n")
        assert outcome.err.count("\n") == 1


@pytest.mark.parametrize("verb", [["job", "list"], ["--json", "job", "list"], ["run", "-d", "x"], ["run", "x"]])
def test_a_certificate_that_ends_soon_is_told_once_on_stderr(node: FakeNode, verb: list[str]) -> None:
    """One line, whatever the command; stdout is what it is without."""
    before = node.rnx(*verb)
    assert before.err == ""
    node.write_config(node.authority.issue(["alice"], not_after=timedelta(days=3, hours=1)))
    outcome = node.rnx(*verb)
    assert outcome.err == (
        "rnx: the certificate cert ends in 3 days: renew it where its CA is: joblet certs renew cert\n"
    )
    assert outcome.code == before.code
    assert len(outcome.out) == len(before.out)


def test_a_node_of_another_authority_is_not_trusted(node: FakeNode) -> None:
    """The client verifies the server, too."""
    node.write_config(node.authority.client("alice"), ca=Authority("other").pem)
    outcome = node.rnx("job", "list")
    assert outcome.code == 5
    assert "not trusted" in outcome.err


@pytest.mark.threat("C20")
def test_an_error_text_cannot_write_on_the_terminal(node: FakeNode, capfd: pytest.CaptureFixture[str]) -> None:
    """Whatever the node says comes out as one line without control characters."""
    node.jobs.not_found_text = "no\x1b[2J such\r\njob"
    assert node.call("job", "status", "99999999") == 3
    assert capfd.readouterr().err == "rnx: no\\x1b[2J such job: see rnx job list\n"


def test_tls_1_2_is_not_spoken(node: FakeNode) -> None:
    """A server that knows TLS 1.2 only gets no connection from rnx."""
    identity = node.authority.server()
    material = node.config.with_name("server.pem")
    material.write_bytes(identity.cert + identity.key)
    old = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    old.load_cert_chain(material)
    old.maximum_version = ssl.TLSVersion.TLSv1_2
    old.set_alpn_protocols(["h2"])
    agreed = []
    with socket.create_server(("127.0.0.1", 0)) as listener, ThreadPoolExecutor(1) as threads:
        node.port = listener.getsockname()[1]
        node.write_config(identity)

        def serve() -> None:
            connection, _ = listener.accept()
            with connection, suppress(OSError), old.wrap_socket(connection, server_side=True) as secured:
                agreed.append(secured.version())

        served = threads.submit(serve)
        outcome = node.rnx("job", "list")
        served.result(timeout=20)
    assert (outcome.code, agreed) == (5, [])
    assert outcome.err.count("\n") == 1
