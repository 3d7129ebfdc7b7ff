"""Errors that are the user's to mend: shown as one line, without a traceback."""

import difflib


class UserError(ValueError):
    """A value, the rule it breaks and the way out, in one line."""


def nearest(name, known):
    """' (did you mean X?)' where a known name is close to `name`, else ''."""
    close = difflib.get_close_matches(str(name), [str(k) for k in known], n=1, cutoff=0.6)
    return f" (did you mean {close[0]}?)" if close else ""
