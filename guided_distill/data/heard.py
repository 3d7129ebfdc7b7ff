"""What a library warns of while it works on one thing, kept for whoever can say which thing.

`warnings.catch_warnings` is for one thread alone: pictures are decoded by several at once.
"""

import contextlib
import threading
import warnings

_lock = threading.Lock()
_here = threading.local()
_listening, _before = 0, None  # threads within `hearing`; what they found, to be put back


@contextlib.contextmanager
def hearing(module):
    """Within it, a list that what this thread's calls warn of is added to, as text, each once.

    Nothing of it is shown; other threads' warnings go where they went before.

    Args:
      module: regular expression of the modules whose warnings are all heard, where Python's own
        rule would tell the first of its kind alone.
    """
    _begin(module)
    _here.heard = heard = []
    try:
        yield heard
    finally:
        _here.heard = None
        _end()


def _begin(module):
    global _listening, _before
    with _lock:
        if not _listening:
            _before = warnings.catch_warnings()
            _before.__enter__()
            warnings.filterwarnings("always", module=module)
            warnings.showwarning = _hand_over(warnings.showwarning)
        _listening += 1


def _end():
    global _listening
    with _lock:
        _listening -= 1
        if not _listening:
            _before.__exit__(None, None, None)


def _hand_over(show):
    def keep(message, category, filename, lineno, file=None, line=None):
        heard = getattr(_here, "heard", None)
        if heard is None:
            show(message, category, filename, lineno, file, line)
        else:
            text = " ".join(str(message).split())
            heard += [text] if text not in heard else []

    return keep
