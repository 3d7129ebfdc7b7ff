"""Ctrl-C while modules are imported: the process ends at once, without a word.

A `KeyboardInterrupt` there would show a traceback of somebody else's import, and some libraries
swallow it, so that a run goes on that was told to stop. Nothing has been written by then.
"""

import contextlib
import signal
import threading


def end_at_once():
    """Lets SIGINT end this process, as the system does where nobody listens (130 in a shell).

    Changes nothing where SIGINT is ignored, as of jobs in the background, or handled by others.

    Returns:
      A function that gives SIGINT back to Python.
    """
    is_main = threading.current_thread() is threading.main_thread()
    if not is_main or signal.getsignal(signal.SIGINT) is not signal.default_int_handler:
        return lambda: None
    signal.signal(signal.SIGINT, signal.SIG_DFL)
    return lambda: signal.signal(signal.SIGINT, signal.default_int_handler)


@contextlib.contextmanager
def ending_at_once():
    """`end_at_once` within this context."""
    give_back = end_at_once()
    try:
        yield
    finally:
        give_back()
