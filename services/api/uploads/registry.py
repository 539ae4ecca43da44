"""Which uploads are staged, whose they are, and how much they take together.

Belongs here: ownership, the bounds on all uploads together, and removing what nobody took. Does not belong here:
receiving and writing them (`staging.py`). The executor removes the archive of a job that took it.
"""

import asyncio
import re
import secrets
import time
from collections.abc import Callable, Iterable
from contextlib import suppress
from pathlib import Path
from typing import Final

import structlog

from common.config.layout import Layout
from common.config.settings import Uploads
from common.errors import exhausted, invalid, not_found
from common.messages.jobs import Upload
from services.api.quotas import Bound

log = structlog.get_logger(__name__)

UPLOADS_MAX: Final = 1000
"""Staged at once. As many more are remembered that jobs have, for who asks for his job again."""
OF_ONE_OWNER_MAX: Final = 100
SWEEP_S: Final = 30.0
ID: Final = re.compile(r"[0-9a-f]{32}", re.ASCII)


class Staged:
    """One upload, from its first byte until a job took it or it was removed."""

    def __init__(self, *, owner: str, path: Path, until_s: float, bound: Bound | None = None) -> None:
        self.owner = owner
        self.bound = bound
        self.path = path
        self.until_s = until_s
        self.upload: Upload | None = None  # None: still being received, or left by an earlier process
        self.bytes = 0
        self.taken_with: str | None = None  # the idempotency key of the job that has it
        self.lent_with: list[str] = []  # those of runs that ask for it and have no answer yet

    def is_free(self, key: str) -> bool:
        """Whether a run with this key may have it: nobody else does, or it is asked for again by the same key."""
        others = (*self.lent_with, self.taken_with) if self.taken_with is not None else self.lent_with
        return all(key and other == key for other in others)


class Loan:
    """Uploads lent to one RunJob inside the with-block: `keep` when the executor has them, else they stay staged."""

    def __init__(self, registry: "Registry", owner: str, key: str) -> None:
        self._registry = registry
        self._owner = owner
        self._key = key
        self._taken: list[Staged] = []

    def take(self, upload_id: str) -> Upload:
        """The upload, when it is the owner's; JobletError(NOT_FOUND) when it is another's or none."""
        staged = self._registry.find(upload_id, self._owner, self._key)
        assert staged.upload is not None
        staged.lent_with.append(self._key)
        self._taken.append(staged)
        return staged.upload

    def __enter__(self) -> "Loan":
        return self

    def __exit__(self, *_: object) -> None:
        for staged in self._taken:
            staged.lent_with.remove(self._key)

    def keep(self, uploads: Iterable[Upload]) -> None:
        """A job has these, and the executor removes their archives. A job that was there before may have others."""
        kept = {upload.id for upload in uploads}
        for staged in self._taken:
            if staged.upload is not None and staged.upload.id in kept:
                staged.taken_with = self._key
                staged.bytes = 0


class Registry:
    """The uploads of this process. `clock` gives monotonic seconds."""

    def __init__(self, layout: Layout, bounds: Uploads, *, clock: Callable[[], float] = time.monotonic) -> None:
        self._layout = layout
        self._bounds = bounds
        self._clock = clock
        self._staged: dict[str, Staged] = {}

    @property
    def known(self) -> int:
        """How many uploads are remembered: those that are staged, and those that jobs have."""
        return len(self._staged)

    def adopt(self) -> None:
        """Take over what an earlier process left.

        Nobody can name it any more, but a job that was accepted just before the restart may be about to read it: so
        it goes when its time is over, and counts until then.
        """
        for path in self._layout.uploads.glob("*.tar"):
            staged = Staged(owner="", path=path, until_s=self._expiry())
            with suppress(FileNotFoundError):
                staged.bytes = path.stat().st_size
                self._staged[path.stem] = staged

    def begin(self, owner: str, bound: Bound | None = None) -> tuple[str, Staged]:
        """A place for a new upload: its id, and where to write it. JobletError(EXHAUSTED) when there are too many.

        `bound` is of the bytes of all that `owner` has staged.
        """
        self._expire()
        taken = [one for one, staged in self._staged.items() if staged.taken_with is not None]
        if len(self._staged) - len(taken) >= UPLOADS_MAX or self._count(owner) >= OF_ONE_OWNER_MAX:
            raise exhausted("too many uploads are staged", "run or wait for the jobs that they are for")
        for oldest in taken[: max(0, len(taken) - UPLOADS_MAX)]:
            self.remove(oldest)
        upload_id = secrets.token_hex(16)
        staged = Staged(owner=owner, path=self._layout.upload(upload_id), until_s=float("inf"), bound=bound)
        self._staged[upload_id] = staged
        return upload_id, staged

    def grow(self, staged: Staged, size_bytes: int) -> None:
        """Count `size_bytes` more. JobletError(EXHAUSTED) when all uploads, or all of the owner, would be too large."""
        bound = staged.bound
        if bound is not None and self._bytes_of(staged.owner) + size_bytes > bound.most:
            raise bound.refusal(
                f"{staged.owner} would have more than {bound.most} bytes staged",
                "run the jobs that the staged files are for, or upload less",
            )
        if sum(other.bytes for other in self._staged.values()) + size_bytes > self._bounds.staged_bytes_max:
            raise exhausted(
                f"staged uploads would take more than {self._bounds.staged_bytes_max} bytes together",
                "run the jobs that they are for, or try again later",
            )
        staged.bytes += size_bytes

    def complete(self, upload_id: str, upload: Upload) -> None:
        """The upload is whole; a job may take it from now on, for as long as the bounds say."""
        staged = self._staged[upload_id]
        staged.upload = upload
        staged.until_s = self._expiry()

    def remove(self, upload_id: str) -> None:
        """Forget an upload, and its archive unless a job has it."""
        staged = self._staged.pop(upload_id, None)
        if staged is None or staged.taken_with is not None:
            return
        try:
            staged.path.unlink(missing_ok=True)
        except OSError as cause:  # the sweep goes on for ever, and whoever it is that uploads next has no part in this
            log.error("a staged upload cannot be removed", upload=upload_id, why=cause.strerror)

    def lend(self, owner: str, key: str) -> Loan:
        """Lend uploads to one RunJob with this idempotency key (empty: none)."""
        return Loan(self, owner, key)

    def find(self, upload_id: str, owner: str, key: str) -> Staged:
        """A whole upload of `owner` that no job has; or that the very job has which is asked for again by its key."""
        if not ID.fullmatch(upload_id):
            raise invalid(f"upload_ids: malformed id {upload_id[:40]!r}", "use the upload_id that UploadFiles gave")
        staged = self._staged.get(upload_id)
        if staged is None or staged.owner != owner or staged.upload is None or not staged.is_free(key):
            raise not_found("no such upload", "upload the files again")
        return staged

    async def sweep(self) -> None:
        """Remove what nobody took in time, for ever."""
        while True:
            await asyncio.sleep(SWEEP_S)
            self._expire()

    def _expire(self) -> None:
        now_s = self._clock()
        for upload_id in [
            one for one, staged in self._staged.items() if staged.until_s <= now_s and not staged.lent_with
        ]:
            log.info("upload was not used in time", upload=upload_id)
            self.remove(upload_id)

    def _expiry(self) -> float:
        return self._clock() + self._bounds.unused_ms_max / 1000

    def _bytes_of(self, owner: str) -> int:
        return sum(staged.bytes for staged in self._staged.values() if staged.owner == owner)

    def _count(self, owner: str) -> int:
        return sum(1 for staged in self._staged.values() if staged.owner == owner and staged.taken_with is None)
