"""The error of a configuration, and suggestions of names for its message."""

import difflib


class ConfigError(ValueError):
    """A configuration that cannot work; the message names field, value and expectation."""


def nearest(name: str, known) -> str:
    """Return ' (did you mean ...?)' when a known name is close, else ''."""
    close = difflib.get_close_matches(name, [str(k) for k in known], n=1)
    return f" (did you mean {close[0]!r}?)" if close else ""
