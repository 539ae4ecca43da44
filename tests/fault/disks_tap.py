"""A subscriber that never reads, as an operator's own program may be: `python -m tests.fault.disks_tap SOCKET TOPIC`.

Belongs here: subscribing with plain ZeroMQ, saying so, and then nothing. It is a process of its own, so that a test can
look at it, and end it, as at any stranger.
"""

import sys
import threading

import zmq


def main() -> None:
    """Subscribe, say "ready" when the first message is there, and read no more until the process is ended."""
    socket = zmq.Context().socket(zmq.SUB)
    socket.setsockopt(zmq.RCVHWM, 10)
    socket.connect(f"ipc://{sys.argv[1]}")
    socket.setsockopt_string(zmq.SUBSCRIBE, sys.argv[2])
    socket.recv_multipart()
    sys.stdout.write("ready\n")
    sys.stdout.flush()
    threading.Event().wait()


if __name__ == "__main__":
    main()
