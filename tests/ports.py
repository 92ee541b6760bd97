"""Ports for what the tests in Python start."""

import itertools
import os
import socket

_next = itertools.count()


def free_port() -> int:
    """A port nobody listens on, below the range the system gives to outgoing connections, and another one for each process that
    asks: a port that the system hands out and takes back may be another's by the time it is used."""
    while True:
        port = 10_000 + (os.getpid() * 97 + next(_next)) % 5_000
        with socket.socket() as listener:
            try:
                listener.bind(("127.0.0.1", port))
            except OSError:
                continue
        return port
