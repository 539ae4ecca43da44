"""The executor's records: what is found, what is refused, and what a damaged file costs."""

import asyncio
import contextlib
import sqlite3
import stat
from pathlib import Path

import pytest
from msgspec.structs import replace

from common.errors import JobletError, Reason
from common.identifiers import JobId, new_job_id
from common.messages.jobs import JobRecord, JobSpec, ListJobs, State
from services.executor import job_pages, store_file
from services.executor.events import Job
from services.executor.job_store import Cursor, JobStore
from services.executor.owners import Owners
from services.executor.writer import RecordWriter


def make_job(number: int = 1, **fields: object) -> Job:
    """A running job of ann's."""
    record = JobRecord(
        id=new_job_id(),
        owner="ann",
        node_id="n",
        state=State.RUNNING,
        spec=JobSpec(command="true"),
        created_at_ns=number,
    )
    return Job(record=replace(record, **fields))


def filled(store: JobStore, jobs: list[Job]) -> None:
    """Store `jobs`."""
    for job in jobs:
        store.insert(job, "")


def ids(page: job_pages.JobsPage) -> list[JobId]:
    """The ids on a page."""
    return [job.record.id for job in page.jobs]


def test_a_job_comes_back_as_it_was_stored(tmp_path: Path) -> None:
    """Every field, after closing and opening; the file is for root only."""
    path = tmp_path / "jobs.db"
    job = make_job(spec=JobSpec(command="sh", args=("-c", "é\x01"), labels={"a": "b"}))
    store = JobStore(path, now_ns=1)
    store.insert(job, "key")
    store.close()
    again = JobStore(path, now_ns=2)
    assert again.get(job.record.id) == job
    assert again.find_by_key("ann", "key") == job
    assert again.find_by_key("bob", "key") is None
    assert list(again.unended()) == [job]
    assert again.cursors() == [Cursor(job=job.record.id)]
    assert again.has_cursor(job.record.id)
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    again.close()


def test_an_idempotency_key_is_unique_for_its_owner(tmp_path: Path) -> None:
    """The same key of two owners is two jobs; of one owner it is refused."""
    store = JobStore(tmp_path / "jobs.db", now_ns=1)
    store.insert(make_job(), "k")
    store.insert(make_job(owner="bob"), "k")
    with pytest.raises(sqlite3.IntegrityError):
        store.insert(make_job(), "k")
    store.close()


@pytest.mark.threat("B09")
def test_a_prefix_is_resolved_among_visible_jobs_only(tmp_path: Path) -> None:
    """Another's job does not make a prefix ambiguous, and asking for it is the same as asking for nothing."""
    store = JobStore(tmp_path / "jobs.db", now_ns=1)
    twin = JobId("6fa459ea-ee8a-4ca4-894e-db77e1603550")
    other = JobId("6fa459ea-ee8a-4ca4-894e-db77e1603551")
    filled(store, [make_job(id=twin), make_job(id=other, owner="bob")])
    assert store.find("6fa459ea", visible_owner="ann").record.id == twin
    with pytest.raises(JobletError, match="ambiguous") as ambiguous:
        store.find("6fa459ea", visible_owner=None)
    assert ambiguous.value.reason is Reason.INVALID
    assert store.find(other, visible_owner=None).record.id == other
    with pytest.raises(JobletError) as hidden:
        store.find("6fa459ea-ee8a", visible_owner="eve")
    with pytest.raises(JobletError) as absent:
        store.find("6fa459ea-ee8b", visible_owner="eve")
    assert hidden.value.reason is absent.value.reason is Reason.NOT_FOUND
    assert hidden.value.detail == absent.value.detail
    store.close()


def test_pages_are_newest_first_without_hole_or_repeat(tmp_path: Path) -> None:
    """Also with equal times, and while new jobs come."""
    store = JobStore(tmp_path / "jobs.db", now_ns=1)
    jobs = [make_job(number // 3) for number in range(50)]
    filled(store, jobs)
    order = sorted(((j.record.created_at_ns, j.record.id) for j in jobs), reverse=True)
    seen: list[JobId] = []
    token = ""
    while True:
        page = job_pages.page(store, ListJobs(visible_owner=None, page_size=7, page_token=token))
        seen += ids(page)
        filled(store, [make_job(1000)])
        token = page.next_page_token
        if not token:
            break
    assert seen == [job_id for _, job_id in order]
    store.close()


@pytest.mark.threat("B11")
def test_filters_combine_and_never_widen_what_is_visible(tmp_path: Path) -> None:
    """Owner, states and labels; an owner that is not visible gives an empty page."""
    store = JobStore(tmp_path / "jobs.db", now_ns=1)
    red = JobSpec(command="x", labels={"color": "red", "size": "1"})
    blue = JobSpec(command="x", labels={"color": "blue"})
    a, b, c, d = (
        make_job(1, spec=red),
        make_job(2, spec=red, state=State.FAILED),
        make_job(3, spec=blue, owner="bob", state=State.FAILED),
        make_job(4, owner="bob"),
    )
    filled(store, [a, b, c, d])

    def listed(**request: object) -> list[JobId]:
        return ids(job_pages.page(store, ListJobs(**{"visible_owner": None, **request})))  # type: ignore[arg-type]

    def of(*jobs: Job) -> list[JobId]:
        return [job.record.id for job in jobs]

    assert listed() == of(d, c, b, a)
    assert listed(visible_owner="ann") == of(b, a)
    assert listed(visible_owner="ann", owner="bob") == []
    assert listed(owner="bob") == of(d, c)
    assert listed(states=(State.FAILED,)) == of(c, b)
    assert listed(states=(State.FAILED, State.RUNNING)) == of(d, c, b, a)
    assert listed(states=(State.FAILED, State.RUNNING), owner="ann") == of(b, a)
    assert listed(labels={"color": "red"}) == of(b, a)
    assert listed(labels={"color": "red"}, visible_owner="bob") == []
    assert listed(labels={"color": "red", "size": "1"}, states=(State.FAILED,)) == of(b)
    assert listed(labels={"color": "blue"}, owner="bob") == of(c)
    store.close()


def test_a_page_looks_at_a_bounded_number_of_jobs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A filter that matches little gives short pages and a token; all matches are found in the end."""
    monkeypatch.setattr(job_pages, "ROWS_PER_PAGE_MAX", 10)
    store = JobStore(tmp_path / "jobs.db", now_ns=1)
    rare = make_job(1, spec=JobSpec(command="x", labels={"a": "1", "b": "2"}))
    filled(store, [rare, *(make_job(n, spec=JobSpec(command="x", labels={"a": "1"})) for n in range(2, 40))])
    pages, token, seen = 0, "", list[JobId]()
    while pages == 0 or token:
        request = ListJobs(visible_owner=None, labels={"a": "1", "b": "2"}, page_token=token)
        page = job_pages.page(store, request)
        seen += ids(page)
        pages, token = pages + 1, page.next_page_token
    assert seen == [rare.record.id]
    assert pages == 4
    store.close()


def test_a_page_of_large_jobs_fits_into_a_message(tmp_path: Path) -> None:
    """Jobs with large specs come in shorter pages."""
    store = JobStore(tmp_path / "jobs.db", now_ns=1)
    filled(store, [make_job(n, spec=JobSpec(command="x", args=("y" * 900_000,))) for n in range(5)])
    page = job_pages.page(store, ListJobs(visible_owner=None))
    assert len(page.jobs) == 3
    assert page.next_page_token
    store.close()


@pytest.mark.parametrize("token", ["x", "ä", "AAAA", "=" * 60, "A" * 59, "A" * 60])
def test_a_token_that_was_not_given_out_is_refused(tmp_path: Path, token: str) -> None:
    """INVALID, and nothing else."""
    store = JobStore(tmp_path / "jobs.db", now_ns=1)
    with pytest.raises(JobletError, match="malformed page token"):
        job_pages.page(store, ListJobs(visible_owner=None, page_token=token))
    store.close()


@pytest.mark.threat("F34")
def test_a_database_of_the_first_version_is_taken_over(tmp_path: Path) -> None:
    """Jobs stay; what it had no table for is there, and it is of the present version."""
    path, job = tmp_path / "jobs.db", make_job()
    with contextlib.closing(JobStore(path, now_ns=1)) as store:
        store.insert(job, "")
        store.connection.execute("DROP TABLE secrets")
        store.connection.execute("PRAGMA user_version=1")
        store.connection.execute("PRAGMA wal_checkpoint(TRUNCATE)")
    with contextlib.closing(JobStore(path, now_ns=2)) as store:
        assert store.get(job.record.id) == job
        assert store.sealed_secrets(job.record.id) == b""
        assert store.connection.execute("PRAGMA user_version").fetchone() == (store_file.SCHEMA_VERSION,)


@pytest.mark.threat("F34")
def test_a_newer_schema_is_refused_and_the_file_left_as_it_is(tmp_path: Path) -> None:
    """With both versions in the message."""
    path = tmp_path / "jobs.db"
    JobStore(path, now_ns=1).close()
    connection = sqlite3.connect(path)
    connection.execute(f"PRAGMA user_version={store_file.SCHEMA_VERSION + 1}")
    connection.close()
    before = path.read_bytes()
    with pytest.raises(JobletError, match=r"schema version 3, this program knows versions up to 2"):
        JobStore(path, now_ns=2)
    assert path.read_bytes() == before
    assert sorted(file.name for file in tmp_path.iterdir()) == ["jobs.db"]


@pytest.mark.threat("F11")
@pytest.mark.parametrize("damage", ["half", "header", "pages", "text"])
def test_a_damaged_file_is_set_aside_and_kept(tmp_path: Path, damage: str) -> None:
    """The service starts, and nothing wrong is believed: what is taken over is as it was."""
    path = tmp_path / "jobs.db"
    jobs = [make_job(n) for n in range(200)]
    store = JobStore(path, now_ns=1)
    filled(store, jobs)
    store.close()
    content = bytearray(path.read_bytes())
    match damage:
        case "half":
            del content[len(content) // 2 :]
        case "header":
            content[0:16] = b"\0" * 16
        case "pages":
            content[4096 * 4 : 4096 * 12] = b"\xff" * 4096 * 8
        case _:
            content[:] = b"hello"
    path.write_bytes(content)
    again = JobStore(path, now_ns=77)
    assert (tmp_path / "jobs.db.damaged-77").read_bytes() == bytes(content)
    stored = {job.record.id: job for job in jobs}
    for job in again.unended():
        assert stored[job.record.id] == job
    filled(again, [make_job(999)])
    again.close()


@pytest.mark.threat("F11")
def test_a_flipped_bit_in_a_row_is_noticed(tmp_path: Path) -> None:
    """The row counts as absent and the damage is counted; the other rows are served."""
    store = JobStore(tmp_path / "jobs.db", now_ns=1)
    good, bad, moved = make_job(1), make_job(2), make_job(3)
    filled(store, [good, bad, moved])
    data: bytes = store.connection.execute("SELECT data FROM jobs WHERE id=?", (bad.record.id,)).fetchone()[0]
    store.connection.execute("UPDATE jobs SET data=? WHERE id=?", (data[:-1] + b"\x7f", bad.record.id))
    store.connection.execute("UPDATE jobs SET owner='eve' WHERE id=?", (moved.record.id,))
    assert store.get(bad.record.id) is None
    assert ids(job_pages.page(store, ListJobs(visible_owner=None))) == [good.record.id]
    assert ids(job_pages.page(store, ListJobs(visible_owner="eve"))) == []
    assert store.damaged_rows == 4
    store.close()


@pytest.mark.threat("A07")
def test_uid_ranges_are_apart_and_are_never_given_twice(tmp_path: Path) -> None:
    """One range an owner, the same one after a restart."""
    path = tmp_path / "jobs.db"
    store = JobStore(path, now_ns=1)
    owners = Owners(store, uid_first=100_000)
    first, second = owners.identity_of("ann"), owners.identity_of("bob")
    assert (first.range_first, first.uid, second.range_first) == (100_000, 101_000, 165_536)
    store.close()
    store = JobStore(path, now_ns=1)
    owners = Owners(store, uid_first=100_000)
    assert [owners.identity_of(name) for name in ("bob", "ann")] == [second, first]
    assert owners.identity_of("eve").range_first == 231_072
    store.close()


@pytest.mark.threat("F15")
def test_when_the_disk_is_full_new_jobs_are_refused_and_changes_are_kept(tmp_path: Path) -> None:
    """RunJob's insert raises EXHAUSTED; a known job's change is written as soon as there is space."""

    async def scenario() -> None:
        store = JobStore(tmp_path / "jobs.db", now_ns=1)
        writer = RecordWriter(store)
        job = make_job()
        await writer.insert(job, "")
        pages = store.connection.execute("PRAGMA page_count").fetchone()[0]
        store.connection.execute(f"PRAGMA max_page_count={pages}")
        ended = job.with_record(state=State.COMPLETED, reason="r" * 100_000)
        writer.update(ended, durable=True)
        with pytest.raises(JobletError) as refused:
            await writer.insert(make_job(spec=JobSpec(command="x", args=("y" * 100_000,))), "")
        assert refused.value.reason is Reason.EXHAUSTED
        assert store.get(job.record.id) == job
        assert writer.unsaved(job.record.id) == ended
        store.connection.execute("PRAGMA max_page_count=100000")
        await writer.durable()
        assert store.get(job.record.id) == ended
        assert list(store.unended()) == []
        store.close()

    asyncio.run(scenario())


def test_inserts_of_one_turn_of_the_loop_are_one_transaction(tmp_path: Path) -> None:
    """A hundred jobs at once cost one sync of the disk, and each caller waits for it."""

    async def scenario() -> None:
        store = JobStore(tmp_path / "jobs.db", now_ns=1)
        statements: list[str] = []
        store.connection.set_trace_callback(statements.append)
        writer = RecordWriter(store)
        await asyncio.gather(*(writer.insert(make_job(n), f"key{n}") for n in range(100)))
        assert statements.count("COMMIT") == 1
        assert "PRAGMA synchronous=FULL" in statements
        assert len(list(store.unended())) == 100
        store.close()

    asyncio.run(scenario())
