"""Locks between processes, on files; they die with the process that holds them."""

import contextlib
import fcntl
import os


@contextlib.contextmanager
def hold_lock(path, *, on_taken):
    """Holds the lock of `path`, a file that is made where it is missing.

    Args:
      path: of the lock's file, which says whose it is.
      on_taken: called with that text where another process holds the lock; it may raise, else
        the lock is waited for.

    Raises:
      OSError: where the file cannot be made.
    """
    with open(path, "a+", encoding="utf-8") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            lock.seek(0)
            on_taken(lock.read())
            fcntl.flock(lock, fcntl.LOCK_EX)
        except OSError:
            pass  # A file system without locks.
        lock.truncate(0)
        lock.write(f"process {os.getpid()} on {os.uname().nodename}")
        lock.flush()
        yield
