"""Errors that are the user's to mend: shown as one line, without a traceback."""

import difflib
import errno
import os

FULL = (errno.ENOSPC, errno.EDQUOT, errno.EROFS)
UNUSABLE = (  # what ails a file, or the way to it, but is no mistake of the program
    errno.EIO, errno.ESTALE, errno.EACCES, errno.EPERM, errno.EMFILE, errno.ENFILE,
    errno.ETIMEDOUT, errno.ENODEV, errno.ENOLCK, errno.EREMOTEIO,
)  # fmt: skip


class UserError(ValueError):
    """A value, the rule it breaks and the way out, in one line."""


def nearest(name, known):
    """' (did you mean X?)' where a known name is close to `name`, else ''."""
    close = difflib.get_close_matches(str(name), [str(k) for k in known], n=1, cutoff=0.6)
    return f" (did you mean {close[0]}?)" if close else ""


def describe_trouble(error, folder=None):
    """What the machine lacks, in words, where that is behind an error; "" where it is not.

    Args:
      error: that was raised.
      folder: what was being written, where that is known.
    """
    for cause in _behind(error):
        if reason := _reason(cause, FULL):
            place = f"{folder} cannot be written: " if folder else ""
            return (
                f"{place}the disk takes no more ({reason}): make room, and the same command goes on"
            )
        if reason := _reason(cause, UNUSABLE):
            place = folder or getattr(cause, "filename", None) or "a file"
            return f"{place} cannot be used ({reason}): the same command goes on once it can"
        text = str(cause)
        if "Unable to initialize backend" in text:
            return f"{text.splitlines()[0]}: check JAX_PLATFORMS, or install JAX for that device"
    return ""


def _behind(error):
    """An error and what led to it, from the last to the first, and all that a group has."""
    while error is not None:
        yield error
        for member in getattr(error, "exceptions", ()):
            yield from _behind(member)
        error = error.__cause__ or error.__context__


def _reason(error, numbers):
    """The system's words where an error is of one of these numbers, or hands them on, else ""."""
    number, text = getattr(error, "errno", None), str(error)
    said = [known for known in numbers if known == number or os.strerror(known) in text]
    return os.strerror(said[0]) if said else ""
