"""Memory that held a key. Belongs here: nothing else.

What is immutable in Python (bytes, str) cannot be overwritten: keys are put together in a bytearray, and wiped there.
"""


def wipe(buffer: bytearray) -> None:
    """Overwrite it in place."""
    buffer[:] = bytes(len(buffer))
