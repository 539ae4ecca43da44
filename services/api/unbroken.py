"""Work that must come to its end although who waits for it is cancelled: a call that is cut, a client that leaves."""

import asyncio
from collections.abc import Awaitable
from typing import TypeVar

T = TypeVar("T")


async def to_its_end(work: Awaitable[T]) -> T:
    """What `work` answers or raises. Who is cancelled meanwhile, however often, waits for it and is cancelled then."""
    working = asyncio.ensure_future(work)
    cancelled: asyncio.CancelledError | None = None
    while not working.done():
        try:
            await asyncio.wait({working})
        except asyncio.CancelledError as cause:
            cancelled = cause
    if cancelled is not None:
        if not working.cancelled():
            working.exception()  # told to nobody: asyncio need not complain of that
        raise cancelled
    return working.result()
