"""Looking again and again for what the kernel is about to do, for a while.

Here: when to look, and when to give up. Not here: what to look for. For threads; event loops have their own.
"""

import time
from collections.abc import Iterator


def looks(within_s: float, *, pause_s: float) -> Iterator[None]:
    """One item for each look, a pause after each. The last look begins only after `within_s` seconds.

    So a process that stood still between two looks does not take its own standstill for the kernel's.
    """
    deadline = time.monotonic() + within_s
    while True:
        last = time.monotonic() >= deadline
        yield
        if last:
            return
        time.sleep(pause_s)
