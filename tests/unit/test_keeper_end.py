"""How the keeper of certificate files ends: with api, also in its first milliseconds, when api may not kill it yet."""

import asyncio
import subprocess
from pathlib import Path

import msgspec
import pytest

from common.config.layout import layout_of
from common.config.settings import Settings
from services.api.keeper import Keeper
from tests.waiting import wait_for


@pytest.fixture
def keeper(tmp_path: Path) -> Keeper:
    """One that watches four files which are not there, with the rights of whoever runs the tests."""
    made = Keeper()
    settings = Settings()
    joblet = msgspec.structs.replace(settings.joblet, base_dir=str(tmp_path))
    settings = msgspec.structs.replace(settings, joblet=joblet)
    made.start(settings, layout_of(settings), None)
    return made


@pytest.mark.timeout(30)
@pytest.mark.parametrize("reading", [True, False], ids=["while-it-is-read", "before"])
def test_it_ends_where_it_cannot_be_killed(keeper: Keeper, monkeypatch: pytest.MonkeyPatch, *, reading: bool) -> None:
    """The end of its socket is enough, also where asyncio has not closed it yet: `wait` inside `stop` comes back."""

    def refused(_process: "subprocess.Popen[bytes]") -> None:
        raise PermissionError

    monkeypatch.setattr(subprocess.Popen, "kill", refused)
    pid = keeper.pid

    async def one_look() -> None:
        looks = keeper.looks()
        await anext(looks)
        await looks.aclose()

    if reading:
        asyncio.run(one_look())
    keeper.stop()
    assert keeper.pid == 0
    wait_for(lambda: not Path(f"/proc/{pid}").exists(), what="the keeper's end")
