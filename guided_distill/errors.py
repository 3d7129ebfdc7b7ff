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


def describe_trouble(error):
    """What the machine lacks, in words, where that is behind an error; "" where it is not."""
    while error is not None:
        text = str(error)
        if _says(error, FULL):
            reason = _reason(error, FULL)
            return f"the disk takes no more ({reason}): make room, and the same command goes on"
        if _says(error, UNUSABLE):
            name = getattr(error, "filename", None) or "a file"
            reason = _reason(error, UNUSABLE)
            return f"{name} cannot be used ({reason}): the same command goes on once it can"
        if "Unable to initialize backend" in text:
            return f"{text.splitlines()[0]}: check JAX_PLATFORMS, or install JAX for that device"
        error = error.__cause__ or error.__context__
    return ""


def _says(error, numbers):
    """Whether an error is of one of these numbers, or hands on the words of one."""
    words = map(os.strerror, numbers)
    return getattr(error, "errno", None) in numbers or any(word in str(error) for word in words)


def _reason(error, numbers):
    """What to tell of such an error."""
    number = getattr(error, "errno", None)
    return os.strerror(number) if number in numbers else str(error).splitlines()[0][:160]
