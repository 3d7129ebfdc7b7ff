"""Errors that are the user's to mend: shown as one line, without a traceback."""

import difflib
import errno
import os

DISK_ERRNOS = (errno.ENOSPC, errno.EDQUOT, errno.EROFS)
DISK_WORDS = tuple(map(os.strerror, DISK_ERRNOS))  # as libraries hand them on


class UserError(ValueError):
    """A value, the rule it breaks and the way out, in one line."""


def nearest(name, known):
    """' (did you mean X?)' where a known name is close to `name`, else ''."""
    close = difflib.get_close_matches(str(name), [str(k) for k in known], n=1, cutoff=0.6)
    return f" (did you mean {close[0]}?)" if close else ""


def describe_trouble(error):
    """What the machine lacks, in words, where that is behind an error; "" where it is not."""
    while error is not None:
        text = str(error)
        number = getattr(error, "errno", None)
        if number in DISK_ERRNOS or any(words in text for words in DISK_WORDS):
            reason = os.strerror(number) if number in DISK_ERRNOS else text.splitlines()[0][:160]
            return f"the disk takes no more ({reason}): make room, and the same command goes on"
        if "Unable to initialize backend" in text:
            return f"{text.splitlines()[0]}: check JAX_PLATFORMS, or install JAX for that device"
        error = error.__cause__ or error.__context__
    return ""
