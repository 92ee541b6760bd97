"""Ports for what the tests in Python start."""

import itertools
import os
import socket

_next = itertools.count()
_held = []


def free_port() -> int:
    """A port nobody listens on, below the range the system gives to outgoing connections, and another one for each process that
    asks: a port that the system hands out and takes back may be another's by the time it is used. As long as this process runs,
    no other one is given it."""
    while True:
        port = 10_000 + (os.getpid() * 97 + next(_next)) % 5_000
        # The system gives a name to one process at a time, and takes it back when that ends.
        name = socket.socket(socket.AF_UNIX)
        try:
            name.bind(f"\0platform-api-test-port-{port}")
        except OSError:
            name.close()
            continue
        _held.append(name)
        with socket.socket() as listener:
            try:
                listener.bind(("127.0.0.1", port))
            except OSError:
                continue
        return port
