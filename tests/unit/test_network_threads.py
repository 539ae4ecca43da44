"""Work in a thread that ends with it."""

import asyncio
import threading

import pytest

from services.executor.network.threads import in_new_thread, in_own_thread
from tests.waiting import await_for, wait_for


def test_the_answer_comes_from_another_thread() -> None:
    """One that ends, with the answer or with the failure."""
    before = set(threading.enumerate())
    assert asyncio.run(in_new_thread(threading.get_ident, name="t", undo=lambda _: None)) != threading.get_ident()
    assert in_own_thread(threading.get_ident) != threading.get_ident()

    def fail() -> None:
        raise OSError(5, "no")

    with pytest.raises(OSError, match="no"):
        asyncio.run(in_new_thread(fail, name="t", undo=lambda _: None))
    with pytest.raises(OSError, match="no"):
        in_own_thread(fail)
    wait_for(lambda: set(threading.enumerate()) <= before, what="the threads to end")


def test_what_nobody_waits_for_is_undone() -> None:
    """Cancelled while the work goes on, also when the loop is gone before the answer comes."""
    undone: list[int] = []

    async def give_up(*, stay: bool) -> None:
        go = threading.Event()

        def work() -> int:
            go.wait(10)
            return 7

        task = asyncio.create_task(in_new_thread(work, name="t", undo=undone.append))
        await asyncio.sleep(0)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        go.set()
        if stay:
            await await_for(lambda: bool(undone), what="the answer to be undone")

    asyncio.run(give_up(stay=True))
    assert undone == [7]
    asyncio.run(give_up(stay=False))
    wait_for(lambda: undone == [7, 7], what="the second answer to be undone")


def test_an_answer_that_came_just_before_the_cancelling_is_undone() -> None:
    """The answer is there, the task has not run yet: whoever cancels it now never sees the answer."""
    undone: list[int] = []

    async def race() -> None:

        def work() -> int:
            return 7

        task = asyncio.create_task(in_new_thread(work, name="race", undo=undone.append))
        await asyncio.sleep(0)
        wait_for(lambda: all(thread.name != "race" for thread in threading.enumerate()), what="the thread to end")
        asyncio.get_running_loop().call_soon(task.cancel)  # behind the callback with the answer
        with pytest.raises(asyncio.CancelledError):
            await task

    asyncio.run(race())
    assert undone == [7]
