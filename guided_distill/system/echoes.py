"""Keeps off the screen what repeats, from other threads, an error that is raised as well."""

import contextlib
import logging
import pathlib
import re
import sys
import threading

LINGER_SECONDS = 60.0  # in which Orbax's and TensorStore's threads end after an error
LEFTOVER = "Removing existing directory since it is not finalized"  # what an earlier error left


class _Hooks:
    """What is in place of Python's hook for errors that nobody can catch."""

    lock = threading.Lock()
    users = 0  # contexts that are open or linger, in all threads
    unraisable = None  # the hook before the first of them


@contextlib.contextmanager
def without_echoes():
    """Within this context an error of Orbax is told once, by who catches it.

    Orbax logs it, with its traceback, in each thread through which it hands it on; TensorStore's
    other reads and writes end after it, each with an error of its own that nobody waits for, or
    find their event loop gone. Some do so later: where the context ends in an error, it lingers.
    """
    _enter()
    try:
        yield
    except BaseException:
        timer = threading.Timer(LINGER_SECONDS, _leave)
        timer.daemon = True
        timer.start()
        raise
    else:
        _leave()


def _enter():
    with _Hooks.lock:
        _Hooks.users += 1
        if _Hooks.users == 1:
            _Hooks.unraisable, sys.unraisablehook = sys.unraisablehook, _on_unraisable
            logging.getLogger("absl").addFilter(_is_news_of_orbax)
            logging.getLogger("asyncio").addFilter(_is_news_of_asyncio)


def _leave():
    with _Hooks.lock:
        _Hooks.users -= 1
        if _Hooks.users == 0:
            sys.unraisablehook = _Hooks.unraisable
            logging.getLogger("absl").removeFilter(_is_news_of_orbax)
            logging.getLogger("asyncio").removeFilter(_is_news_of_asyncio)


def _is_news_of_orbax(record):
    if "orbax" not in pathlib.PurePath(record.pathname).parts:
        return True
    repeats = record.exc_info or any(isinstance(arg, Exception) for arg in record.args or ())
    return not repeats and LEFTOVER not in record.getMessage()


def _is_news_of_asyncio(record):
    return not re.match("(Task|Future) exception was never retrieved", record.getMessage())


def _on_unraisable(unraisable):
    if str(unraisable.exc_value) != "Event loop is closed":
        _Hooks.unraisable(unraisable)
