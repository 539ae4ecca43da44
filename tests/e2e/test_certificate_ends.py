"""Ends of certificates at a node that really runs: it starts without a client of its own, and the doctor tells."""

import json
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.certificates import DAY, SERVER, Authority, Identity
from tests.e2e.node import PROGRAMS, Node, make_base
from tests.waiting import wait_for


@pytest.fixture
def node() -> Iterator[Node]:
    """A node whose default client has ended, and whose server certificate does soon."""
    base = make_base("ends")
    shutil.rmtree(base / "certs", ignore_errors=True)
    authority = Authority()
    server = authority.issue(["joblet"], usages=[SERVER], names=["localhost", "127.0.0.1"], not_after=3.5 * DAY)
    default = authority.issue(["admin"], ["admin"], not_before=-10 * DAY, not_after=-2 * DAY)
    put(base, "ca", Identity(authority.pem, authority.key_pem))
    put(base, "server", server)
    put(base, "default", default)
    own = Node(base)
    yield own
    own.remove()


def put(base: Path, name: str, identity: Identity) -> None:
    """A pair of files in the node's directory of certificates."""
    certs = base / "certs"
    certs.mkdir(mode=0o700, exist_ok=True)
    (certs / f"{name}.crt").write_bytes(identity.cert)
    (certs / f"{name}.key").write_bytes(identity.key)
    (certs / f"{name}.key").chmod(0o600)


@pytest.mark.threat("D03")
def test_a_node_starts_although_its_own_client_has_ended(node: Node) -> None:
    """Clients' certificates last 45 days, nodes longer: it says what to do, and serves everybody else."""
    node.start()
    told = "no health check: the certificate default has ended: renew it where its CA is: joblet certs renew default"
    wait_for(lambda: told in node.log_text(), what="the reason to be printed")
    refused = node.rnx("job", "list")
    assert refused.returncode == 5
    assert refused.stderr.count(b"\n") == 1
    assert b"the certificate expired at" in refused.stderr
    assert refused.stderr.endswith(b"joblet certs renew default\n")
    renewed = subprocess.run(
        [PROGRAMS / "joblet", "certs", "renew", "default", "--dir", str(node.base / "certs")],
        capture_output=True,
        check=False,
        timeout=60,
    )
    assert renewed.returncode == 0, renewed.stderr
    assert node.ok("run", "echo", "again") == b"again\n"


@pytest.mark.parametrize("running", [True, False])
def test_the_doctor_tells_of_an_end(node: Node, *, running: bool) -> None:
    """With the node running or not, in time, with the repair."""
    if running:
        node.start()
    done = subprocess.run(
        [PROGRAMS / "joblet", "doctor", "--json", "--base-dir", str(node.base)],
        capture_output=True,
        check=False,
        timeout=120,
    )
    rows = {row["name"]: row for row in json.loads(done.stdout)["certificates"]}
    assert rows["certificate.server"]["level"] == "soon"
    assert "ends in 3 days: joblet certs renew server" in rows["certificate.server"]["detail"]
    assert rows["certificate.ca"]["level"] == "valid"
