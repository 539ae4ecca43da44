"""New certificates, keys, authorities and revocation lists without a restart: the real api, its keeper, real files.

The same below a hundred live streams of a whole node is in test_rotation_streams.py.
"""

import asyncio
import os
import signal
import ssl
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import grpc
import pytest
from grpc_health.v1 import health_pb2, health_pb2_grpc

from tests.certificates import Authority, Identity
from tests.e2e.test_rootless import UID, as_user
from tests.leaks import children_of
from tests.security.api_process import NOT_TAKEN, ROOT, TAKEN, ApiProcess, api_process, channel_to, health, serial_of
from tests.waiting import await_for, wait_for

needs_root = pytest.mark.skipif(os.geteuid() != 0, reason="needs root")
READ_SEARCH = 1 << 2


@pytest.fixture
def api() -> Iterator[ApiProcess]:
    """A running one that looks ten times a second."""
    with api_process(expiry_warning_days=60) as running:
        running.start()
        assert running.ended() is None, running.log.read_text()
        yield running


def shows(api: ApiProcess, pair: Identity) -> None:
    """Wait until new connections see this certificate."""
    ann = api.authority.client("ann", "admin")
    wait_for(lambda: api.shown_serial(ann) == serial_of(pair), what="the new certificate on a new connection")


def status_of(pid: int) -> dict[str, str]:
    """/proc/PID/status."""
    lines = Path(f"/proc/{pid}/status").read_text().splitlines()
    return {name: value.strip() for name, value in (line.split(":", 1) for line in lines)}


@pytest.mark.threat("D31")
@pytest.mark.threat("D12")
def test_a_new_pair_is_shown_to_new_connections_and_old_ones_go_on(api: ApiProcess) -> None:
    """Certificate and key, one after the other, three times; a stream lives through it; TLS 1.2 stays out."""
    ann = api.authority.client("ann", "admin")

    async def scenario() -> None:
        async with channel_to(api.port, api.authority.pem, ann) as channel:
            watch = health_pb2_grpc.HealthStub(channel).Watch(health_pb2.HealthCheckRequest())
            await watch.read()
            for _ in range(3):
                pair = Authority.server(api.authority)
                api.write_pair(pair)
                await asyncio.to_thread(shows, api, pair)
                assert not watch.done()
                assert await health(channel) is grpc.StatusCode.OK
                with pytest.raises((ssl.SSLError, ConnectionError)):
                    await asyncio.to_thread(api.shown_serial, ann, ssl.TLSVersion.TLSv1_2)
            watch.cancel()

    asyncio.run(scenario())
    assert api.logged("a certificate ends soon, or has ended"), "the test authority's last 30 days"


@pytest.mark.threat("D31")
def test_what_is_no_good_is_told_once_and_what_was_stays(api: ApiProcess) -> None:
    """A foreign key, half a certificate, a key that others can read, no file at all; then a good pair is taken."""
    ann, other = api.authority.client("ann", "admin"), Authority("somebody else").server()
    before = serial_of(api.pair)
    fresh = api.authority.server()

    def refused(times: int, *words: str) -> None:
        wait_for(lambda: api.logged(NOT_TAKEN) >= times, what=f"refusal {times}: {words[0]}")
        assert api.logged(NOT_TAKEN) == times, api.log.read_text()
        for each in words:
            assert api.logged(each), api.log.read_text()
        assert api.shown_serial(ann) == before
        assert not api.logged(TAKEN)

    # The server's keys are all one in these tests, so that another authority's is the one that does not belong.
    api.write(other.key, "server.key")
    refused(1, "does not belong to the server certificate")
    api.write(fresh.cert[: len(fresh.cert) // 2], "server.crt")
    refused(2, "cannot be read")
    api.write(fresh.cert, "server.crt")
    api.write(fresh.key, "server.key", mode=0o644)
    wait_for(lambda: api.logged("others can read it"), what="the refusal of an open key")
    assert api.shown_serial(ann) == before
    (api.certs / "server.key").unlink()
    wait_for(lambda: api.logged("No such file or directory"), what="the refusal of a missing key")
    assert api.shown_serial(ann) == before
    assert not api.logged(TAKEN)
    api.write(fresh.key, "server.key")
    shows(api, fresh)
    wait_for(lambda: api.logged(TAKEN) == 1, what="the change to be told")


@pytest.mark.threat("D32")
def test_a_list_in_a_file_revokes_and_other_parts_do_not_hinder_it(api: ApiProcess) -> None:
    """It appears, grows, and is there after a restart; a pair that does not fit together is no obstacle to it."""
    eve, ann = api.authority.client("eve", "user"), api.authority.client("ann", "user")
    api.write(Authority("somebody else").server().key, "server.key")
    wait_for(lambda: api.logged(NOT_TAKEN), what="the refused pair")

    async def scenario() -> None:
        async with (
            channel_to(api.port, api.authority.pem, eve) as hers,
            channel_to(api.port, api.authority.pem, ann) as his,
        ):
            assert await health(hers) is await health(his) is grpc.StatusCode.OK
            stream = health_pb2_grpc.HealthStub(hers).Watch(health_pb2.HealthCheckRequest())
            await stream.read()
            api.write(api.authority.crl(), "ca.crl")
            await await_for(lambda: api.logged(TAKEN) == 1, what="the empty list")
            assert await health(hers) is grpc.StatusCode.OK
            api.write(api.authority.crl(eve), "ca.crl")
            await await_for(stream.done, what="her stream to be cut")
            assert await stream.code() is grpc.StatusCode.UNAUTHENTICATED
            assert await health(hers) is grpc.StatusCode.UNAUTHENTICATED
            assert await health(his) is grpc.StatusCode.OK

    asyncio.run(scenario())
    assert api.logged("a revocation list is due for renewal") >= 1

    async def after_a_restart() -> None:
        async with channel_to(api.port, api.authority.pem, eve) as hers:
            assert await health(hers) is grpc.StatusCode.UNAUTHENTICATED

    assert api.process is not None
    api.process.terminate()
    assert api.process.wait(timeout=30) == 0
    api.write(api.pair.key, "server.key")
    api.log.write_bytes(b"")
    api.start()
    asyncio.run(after_a_restart())


@pytest.mark.threat("D31")
def test_sighup_makes_it_look_at_once() -> None:
    """With an hour between two looks a new pair is there after the signal, which ends nothing."""
    with api_process(reload_ms=3_600_000) as api:
        api.start()
        wait_for(lambda: api.logged("certificate files are watched"), what="the keeper to be followed")
        # The first may be seen by the look that every keeper begins with; the second by none but that of the signal.
        for _ in range(2):
            pair = api.authority.server()
            api.write_pair(pair)
            os.kill(api.pid, signal.SIGHUP)
            shows(api, pair)
        assert api.ended() is None


@needs_root
@pytest.mark.threat("D31")
@pytest.mark.threat("A32")
def test_the_keeper_has_one_right_and_belongs_to_api_alone(api: ApiProcess) -> None:
    """CAP_DAC_READ_SEARCH in two sets and nothing in the others, api's uid, no way to more; closed to that very uid."""
    keeper = wait_for(lambda: api.keeper, what="a keeper")
    rights = f"{READ_SEARCH:016x}"
    wait_for(lambda: status_of(keeper)["CapEff"] == rights, what="the keeper to have given the rest up")
    assert status_of(keeper)["Uid"] == status_of(api.pid)["Uid"]
    found = status_of(keeper)
    sets = {name: int(found[name], 16) for name in found if name.startswith("Cap")}
    assert sets == {"CapInh": 0, "CapPrm": READ_SEARCH, "CapEff": READ_SEARCH, "CapBnd": 0, "CapAmb": 0}
    assert (found["NoNewPrivs"], found["Groups"], found["Threads"]) == ("1", "", "1")
    assert "0" not in found["Uid"].split()
    assert "0" not in found["Gid"].split()
    assert Path(f"/proc/{keeper}/environ").read_bytes() == b""
    uid = int(found["Uid"].split()[0])
    spying = f"open('/proc/{keeper}/mem', 'rb')"
    spied = subprocess.run(
        [sys.executable, "-I", "-S", "-c", f"import os; os.setgroups([]); os.setresuid({uid}, {uid}, {uid}); {spying}"],
        capture_output=True,
        text=True,
        check=False,
    )
    assert "PermissionError" in spied.stderr


CANNOT_WRITE = """
import os, sys
sys.path.insert(0, sys.argv[1])
from common.prctl import CAP_DAC_READ_SEARCH, become_with, renounce_new_privileges
secret = sys.argv[2]
renounce_new_privileges()
become_with(61999, 61999, CAP_DAC_READ_SEARCH)
assert open(secret).read() == "secret"
for name, attack in {
    "open": lambda: open(secret, "r+"),
    "truncate": lambda: os.truncate(secret, 0),
    "unlink": lambda: os.unlink(secret),
    "rename": lambda: os.rename(secret, secret + "2"),
    "make": lambda: open(secret + "3", "x"),
    "chmod": lambda: os.chmod(secret, 0o666),
    "chown": lambda: os.chown(secret, 61999, 61999),
    "setuid": lambda: os.setresuid(0, 0, 0),
    "kill": lambda: os.kill(1, 0),
    "hostname": lambda: __import__("socket").sethostname("x"),
}.items():
    try:
        attack()
        print("succeeded:", name)
    except PermissionError:
        pass
print("done")
"""


@needs_root
@pytest.mark.threat("A32")
def test_the_right_that_the_keeper_keeps_reads_and_does_nothing_else(tmp_path: Path) -> None:
    """The same steps as the keeper's, then everything that root could do to a file of root's."""
    closed = tmp_path / "closed"
    closed.mkdir(mode=0o700)
    (closed / "secret").touch(mode=0o600)
    (closed / "secret").write_text("secret")
    done = subprocess.run(
        [sys.executable, "-I", "-S", "-c", CANNOT_WRITE, str(ROOT), str(closed / "secret")],
        capture_output=True,
        text=True,
        check=False,
    )
    assert (done.stdout, done.returncode) == ("done\n", 0), done.stderr


@pytest.mark.threat("D31")
def test_the_keeper_ends_with_api_and_api_goes_on_without_it(api: ApiProcess) -> None:
    """Its own death is said loudly, leaves no zombie and stops nothing else. With api's no keeper is left."""
    ann = api.authority.client("ann", "admin")
    os.kill(wait_for(lambda: api.keeper, what="a keeper"), signal.SIGKILL)
    wait_for(lambda: api.logged("the keeper has ended"), what="the loss to be told")
    wait_for(lambda: not children_of(api.pid), what="no zombie")
    assert api.shown_serial(ann) == serial_of(api.pair)
    os.kill(api.pid, signal.SIGHUP)
    wait_for(lambda: api.logged("there is no keeper"), what="the answer to SIGHUP")
    assert api.ended() is None

    with api_process() as second:
        second.start()
        keeper = wait_for(lambda: second.keeper, what="a keeper")
        os.kill(second.pid, signal.SIGKILL)
        wait_for(lambda: not Path(f"/proc/{keeper}").exists(), what="the keeper to end")


WITHOUT_THE_RIGHT = """
import ctypes, os, sys
PR_CAPBSET_DROP, CAP_DAC_READ_SEARCH = 24, 2
assert ctypes.CDLL(None).prctl(PR_CAPBSET_DROP, CAP_DAC_READ_SEARCH, 0, 0, 0) == 0
os.execv(sys.argv[1], sys.argv[1:])
"""


@needs_root
def test_a_host_that_does_not_give_the_right_has_what_was_there_at_the_start() -> None:
    """As in containers of some managers: api serves, and says that it will see no change."""
    with api_process() as api:
        api.start(before=[sys.executable, "-I", "-S", "-c", WITHOUT_THE_RIGHT])
        wait_for(lambda: api.logged("the keeper has no CAP_DAC_READ_SEARCH here"), what="the keeper's own words")
        wait_for(lambda: api.logged("the keeper has ended"), what="the loss to be told")
        assert api.shown_serial(api.authority.client("ann", "admin")) == serial_of(api.pair)
        assert not children_of(api.pid)


def test_the_keeper_ends_with_an_api_that_ends_well(api: ApiProcess) -> None:
    """Also when the signal goes to both, as a service manager or a terminal sends it."""
    keeper = wait_for(lambda: api.keeper, what="a keeper")
    wait_for(lambda: status_of(keeper)["Name"] == "joblet-keeper", what="the keeper to know what to ignore")
    for number in (signal.SIGINT, signal.SIGTERM):
        os.kill(keeper, number)
    os.kill(api.pid, signal.SIGTERM)
    assert api.process is not None
    assert api.process.wait(timeout=30) == 0
    wait_for(lambda: not Path(f"/proc/{keeper}").exists(), what="the keeper to end")
    assert not api.logged("the keeper has ended")


@pytest.mark.requirement("S0.37")
def test_text_in_the_configuration_needs_no_keeper() -> None:
    """All four as PEM text: nothing is watched."""
    with api_process() as api:
        texts = {"serverCert": api.pair.cert, "serverKey": api.pair.key, "caCert": api.authority.pem}
        texts["crl"] = api.authority.crl()
        api.configure(**{name: content.decode() for name, content in texts.items()})
        api.start()
        assert api.shown_serial(api.authority.client("ann", "admin")) == serial_of(api.pair)
        assert not children_of(api.pid)


@needs_root
def test_an_ordinary_users_api_rotates_too() -> None:
    """Without root the same keeper reads the user's own files, with no capability at all."""
    with api_process() as api:
        for path in (api.base, *api.base.rglob("*")):
            os.chown(path, UID, UID)
        api.start(before=as_user())
        assert api.ended() is None, api.log.read_text()
        keeper = wait_for(lambda: api.keeper, what="a keeper")
        found = status_of(keeper)
        assert {found[name] for name in ("CapPrm", "CapEff", "CapInh", "CapAmb")} == {"0" * 16}
        assert found["Uid"].split() == [str(UID)] * 4
        pair = api.authority.server()
        for content, name in ((pair.cert, "server.crt"), (pair.key, "server.key")):
            api.write(content, name)
            os.chown(api.certs / name, UID, UID)
        shows(api, pair)


@pytest.mark.threat("D31")
@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("open key", "others can read it"),
        ("foreign key", "does not belong to the server certificate"),
        ("torn list", "a block of it is not whole"),
        ("forged list", "not signed by the CA certificate of that name"),
        ("no list", "no revocation list at"),
        ("torn ca", "CA certificate cannot be read"),
    ],
)
def test_it_does_not_start_with_what_is_no_good(name: str, words: str) -> None:
    """A key that others can read, a pair or a list that is wrong, a list that is configured and not there."""
    stranger = Authority("somebody else")
    with api_process() as api:
        match name:
            case "open key":
                (api.certs / "server.key").chmod(0o640)
            case "foreign key":
                api.write(stranger.server().key, "server.key")
            case "torn list":
                api.write(api.authority.crl()[:-40], "ca.crl")
            case "forged list":
                api.write(Authority().crl(), "ca.crl")
            case "no list":
                api.configure(crl=str(api.certs / "none.crl"))
            case "torn ca":
                api.write(api.authority.pem[:-60], "ca.crt")
        api.start()
        assert api.process is not None
        assert api.process.wait(timeout=30) == 1
        assert api.logged(words), api.log.read_text()
        assert not api.logged("Traceback")
