"""What the fault suite's jobs print: numbered text on stdout, numbered binary records on stderr, all of it from a seed.

The text of this file is the program: it runs inside a job, as `python3 -I -S -c <text> <numbers>`, and tests import it
to know the same bytes. So it needs nothing but the standard library, and a job prints in rounds, of which the last
line of each stream tells how many there were.
"""

import hashlib
import os
import signal
import sys
import time

NOISE_BYTES = 24
AWKWARD = ("", "", "", "\r", " \u2028 ", " \x1b[31mred\x1b[0m", " é", "\t", '","sequence":1,"', " " * 40, "\0")
"""Ends of text lines, each of a kind that something once took for more than it is."""


def text(seed: int, number: int, lines: int) -> bytes:
    """Stdout's part of the round `number`, from 0: numbered lines of valid UTF-8."""
    noise = hashlib.shake_128(b"text %d %d" % (seed, number)).hexdigest(lines * NOISE_BYTES // 2)
    first = number * lines
    return "".join(
        f"{first + index} {noise[index * NOISE_BYTES : (index + 1) * NOISE_BYTES]}{AWKWARD[(first + index) % 11]}\n"
        for index in range(lines)
    ).encode()


def binary(seed: int, number: int, records: int) -> bytes:
    """Stderr's part of the round: numbered records with NULs and invalid UTF-8, of which not each ends a line."""
    noise = hashlib.shake_128(b"binary %d %d" % (seed, number)).digest(records * NOISE_BYTES)
    first = number * records
    return b"".join(
        b"%d\0\xff%b%b"
        % (first + index, noise[index * NOISE_BYTES : (index + 1) * NOISE_BYTES], b"" if index % 7 == 3 else b"\n")
        for index in range(records)
    )


def last(rounds: int) -> bytes:
    """The end of each stream."""
    return b"%d rounds\n" % rounds


def write_all(descriptor: int, data: bytes) -> None:
    """All of it, however often the pipe is full."""
    view = memoryview(data)
    while view:
        view = view[os.write(descriptor, view) :]


def main(*numbers: int) -> int:
    """Print until `rounds` are printed, `seconds` are over or SIGUSR2 says that it is enough; the job's exit code.

    Before the round `gate`, if it is not 0, wait for SIGUSR1; the seconds begin behind it.
    """
    seed, rounds, seconds, lines, records, pause_ms, code, gate = numbers
    signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGUSR1, signal.SIGUSR2})
    until = time.monotonic() + seconds
    number = 0
    while number < rounds and time.monotonic() < until and signal.SIGUSR2 not in signal.sigpending():
        if gate and number == gate:
            signal.sigwait({signal.SIGUSR1})
            until = time.monotonic() + seconds
        write_all(1, text(seed, number, lines))
        write_all(2, binary(seed, number, records))
        number += 1
        if pause_ms:
            time.sleep(pause_ms / 1000)
    write_all(1, last(number))
    write_all(2, last(number) if records else b"")
    return code


if __name__ == "__main__":
    sys.exit(main(*map(int, sys.argv[1:])))
