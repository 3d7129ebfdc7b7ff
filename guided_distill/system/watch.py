"""Notices when another process of the run is gone, and ends this one too."""

import contextlib
import os
import socket
import sys
import threading
import time

LOST_EXIT = 75  # "try again later" of sysexits.h
GRACE_SECONDS = 2.0  # for a process to end of its own accord before it says that another is gone
CONNECT_SECONDS = 10.0
INDEX_BYTES = 4


class Watch:
    """Ends this process, saying why, when another one is gone: on the accelerator it would hang.

    Every process keeps a connection to the first, which the operating system closes when one of
    the two dies. A machine that falls silent is noticed by JAX's own heartbeats.

    Args:
      index: of this process.
      count: of all.

    Attributes:
      over: set where all processes are about to end, so that none is missed.
    """

    def __init__(self, index, count):
        self.over = False
        self._index, self._count = index, count
        self._others = {}

    def serve(self):
        """In the first process: waits for the others; returns the port."""
        server = socket.create_server(("", 0))
        _start_thread(self._welcome, server)
        return server.getsockname()[1]

    def connect(self, host, port):
        """In the others. A network that lets nothing through leaves the heartbeats."""
        try:
            connection = socket.create_connection((host, port), timeout=CONNECT_SECONDS)
        except OSError:
            return
        connection.settimeout(None)
        connection.sendall(self._index.to_bytes(INDEX_BYTES, "big"))
        _start_thread(self._listen, connection)

    def _welcome(self, server):
        while True:
            connection, _ = server.accept()
            index = int.from_bytes(connection.recv(INDEX_BYTES), "big")
            if 0 < index < self._count:
                self._others[index] = connection
                _start_thread(self._wait_for_end, index, connection)

    def _wait_for_end(self, index, connection):
        _read(connection)
        time.sleep(GRACE_SECONDS)
        if not self.over:
            for other in self._others.values():
                with contextlib.suppress(OSError):
                    other.sendall(index.to_bytes(INDEX_BYTES, "big"))
            self._end(index)

    def _listen(self, connection):
        """In the others: a number names the process that is gone, an end means the first.

        Then there is no time to lose: JAX aborts a process that misses the first, with a core.
        """
        message = _read(connection)
        if not self.over:
            self._end(int.from_bytes(message, "big"))

    def _end(self, index):
        print(
            f"error: process {index} of this run is gone, its log says why; process {self._index} "
            "stops too: the same command on every process goes on from the last checkpoint",
            file=sys.stderr,
        )
        exit_now(LOST_EXIT)


def _read(connection):
    """The next bytes, b"" at the connection's end."""
    try:
        return connection.recv(INDEX_BYTES)
    except OSError:
        return b""


def _start_thread(target, *args):
    threading.Thread(target=target, args=args, daemon=True).start()


def exit_now(code):
    """Ends at once: a clean end would wait for processes that are gone."""
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code)
