"""Secret variables: sealed until the launch, opened for their job only, and gone from the disk when it has begun."""

import asyncio
import os
from collections.abc import AsyncIterator
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from common.bus.events import Subscriber
from common.bus.memory import Memory
from common.errors import JobletError, Reason
from common.identifiers import new_job_id
from common.messages.envelope import Message
from common.messages.jobs import GetJob, JobAccepted, JobChanged, JobFound, JobPlan, JobSpec, PlanJob, RunJob, State
from common.vault import KEY_BYTES, Vault
from services.executor.job_store import JobStore
from tests.unit.executor_asking import in_state, launched
from tests.unit.executor_fakes import node_settings, running_node
from tests.waiting import await_for

VALUE = "s3cret-7e1c-of-one-job"
SPEC = JobSpec(command="true", environment={"PLAIN": "1"}, secret_names=("TOKEN",))


def test_what_is_sealed_opens_for_its_job_only(tmp_path: Path) -> None:
    """The same values come out; for another job, with another key or with one bit changed nothing does."""
    vault, job = Vault(tmp_path / "node.key"), new_job_id()
    sealed = vault.seal(job, {"TOKEN": VALUE, "ü": ""})
    assert VALUE.encode() not in sealed
    assert Vault(tmp_path / "node.key").unseal(job, sealed) == {"TOKEN": VALUE, "ü": ""}
    other_node = Vault(tmp_path / "other.key")
    changed = [sealed[:at] + bytes([sealed[at] ^ 1]) + sealed[at + 1 :] for at in range(len(sealed))]
    attempts = [(vault, new_job_id(), sealed), (other_node, job, sealed), (vault, job, b"")]
    for opener, whose, content in (*attempts, *((vault, job, one) for one in changed)):
        with pytest.raises(JobletError) as refused:
            opener.unseal(whose, content)
        assert refused.value.reason is Reason.DATA_LOSS


@given(values=st.dictionaries(st.text(max_size=20), st.text(max_size=200), min_size=1, max_size=5))
def test_all_texts_survive(tmp_path_factory: pytest.TempPathFactory, values: dict[str, str]) -> None:
    """Whatever text a variable may have."""
    job = new_job_id()
    vault = Vault(tmp_path_factory.getbasetemp() / "node.key")
    assert vault.unseal(job, vault.seal(job, values)) == values


def test_the_key_is_the_nodes_own(tmp_path: Path) -> None:
    """Made with the first secret, 0600, never again; one that others can read or that is torn is refused."""
    key = tmp_path / "node.key"
    assert Vault(key).seal(new_job_id(), {}) == b""
    assert not key.exists()
    Vault(key).seal(new_job_id(), {"A": "b"})
    content = key.read_bytes()
    assert (len(content), key.stat().st_mode & 0o777) == (KEY_BYTES, 0o600)
    Vault(key).seal(new_job_id(), {"A": "b"})
    assert key.read_bytes() == content
    assert os.listdir(tmp_path) == ["node.key"]  # noqa: PTH208  # names are enough
    key.chmod(0o640)
    with pytest.raises(JobletError, match="others can read it"):
        Vault(key).seal(new_job_id(), {"A": "b"})
    key.chmod(0o600)
    key.write_bytes(content[:-1])
    with pytest.raises(JobletError, match="has not 32 bytes"):
        Vault(key).seal(new_job_id(), {"A": "b"})


async def until_ended(followed: Subscriber) -> AsyncIterator[Message]:
    """What was published, up to the announcement of an end."""
    async for _, message in followed.messages():
        yield message
        if isinstance(message.body, JobChanged) and message.body.job.state is State.COMPLETED:
            return


def bytes_on_disk(base: Path) -> bytes:
    """All files of the node."""
    return b"".join(file.read_bytes() for file in base.rglob("*") if file.is_file())


@pytest.mark.threat("B20")
def test_the_job_has_its_secrets_and_nobody_else(tmp_path: Path) -> None:
    """The launch gets them; record, announcements, plan and files do not; at its START the sealed ones go, too."""

    async def scenario() -> None:
        transport = Memory()
        followed = Subscriber(transport)
        followed.subscribe("")
        async with running_node(node_settings(tmp_path), transport) as node:
            plan = await node.ask.request(PlanJob(owner="ann", spec=SPEC), JobPlan)
            job, monitor = await launched(node, spec=SPEC, secrets={"TOKEN": VALUE})
            assert node.host.secrets[job] == {"TOKEN": VALUE}
            assert node.executor.store.sealed_secrets(job) != b""
            assert VALUE.encode() not in bytes_on_disk(tmp_path)
            monitor.start()
            record = await in_state(node, job, State.RUNNING)
            assert record.spec.secret_names == ("TOKEN",)
            await await_for(lambda: not node.executor.store.sealed_secrets(job), what="the end of what was sealed")
            monitor.exit()
            ended = await in_state(node, job, State.COMPLETED)
            seen = [str(plan), str(record), str(ended)]
            announced = [str(message) async for message in until_ended(followed)]
            assert len(announced) >= 3
            seen += announced
            assert VALUE not in "".join(seen)
            assert VALUE not in repr(RunJob(owner="ann", spec=SPEC, secrets={"TOKEN": VALUE}))
        followed.close()

    asyncio.run(scenario())


def test_a_job_never_runs_without_its_secrets(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """When what was sealed is gone, or does not open, the job FAILED with the reason."""

    async def scenario() -> None:
        transport = Memory()
        async with running_node(node_settings(tmp_path), transport) as node:
            for sealed, why in ((b"", "not in the database"), (b"x" * 40, "cannot be opened")):
                with monkeypatch.context() as patched:
                    patched.setattr(JobStore, "sealed_secrets", lambda *_, sealed=sealed: sealed)
                    request = RunJob(owner="ann", spec=SPEC, secrets={"TOKEN": VALUE})
                    job = (await node.ask.request(request, JobAccepted)).job.id
                    record = await in_state(node, job, State.FAILED)
                assert record.reason.startswith("could not be started: its secret variables are lost")
                assert why in record.reason
            assert node.host.launched == []

    asyncio.run(scenario())


def test_left_over_secrets_go_at_the_next_start(tmp_path: Path) -> None:
    """An executor that was killed between the end of a job and the removal leaves none for ever."""

    async def scenario() -> None:
        transport = Memory()
        async with running_node(node_settings(tmp_path), transport) as node:
            job, monitor = await launched(node, spec=SPEC, secrets={"TOKEN": VALUE})
            monitor.start()
            monitor.exit()
            await in_state(node, job, State.COMPLETED)
            store = node.executor.store
            await await_for(lambda: not store.sealed_secrets(job), what="the end of what was sealed")
            store.connection.execute("INSERT INTO secrets (id, sealed) VALUES (?, x'00')", (job,))
            host = node.host
        async with running_node(node_settings(tmp_path), transport, host) as node:
            store = node.executor.store
            await await_for(lambda: not store.sealed_secrets(job), what="the end of what was left")
            assert (await node.ask.request(GetJob(job=job, visible_owner=None), JobFound)).job.state is State.COMPLETED

    asyncio.run(scenario())


@pytest.mark.parametrize(
    ("spec", "secrets", "why"),
    [
        (SPEC, {}, "not those that the job names"),
        (SPEC, {"OTHER": VALUE}, "not those that the job names"),
        (JobSpec(command="true", secret_names=("A", "A")), {"A": VALUE}, "not those that the job names"),
        (JobSpec(command="true", secret_names=("1=",)), {"1=": VALUE}, "malformed name"),
        (JobSpec(command="true", secret_names=("PLAIN",), environment={"PLAIN": ""}), {"PLAIN": VALUE}, "give it once"),
        (SPEC, {"TOKEN": f"{VALUE}\0"}, "NUL in the secret TOKEN"),
        (SPEC, {"TOKEN": VALUE * 10_000}, "too long"),
    ],
)
def test_refusals_never_show_a_value(tmp_path: Path, spec: JobSpec, secrets: dict[str, str], why: str) -> None:
    """Malformed secrets are INVALID, by name."""

    async def scenario() -> None:
        async with running_node(node_settings(tmp_path), Memory()) as node:
            with pytest.raises(JobletError, match=why) as refused:
                await node.ask.request(RunJob(owner="ann", spec=spec, secrets=secrets), JobAccepted)
            assert refused.value.reason is Reason.INVALID
            assert VALUE not in str(refused.value)

    asyncio.run(scenario())
