"""Every error that a user can cause, as one tree.

A message says what is wrong, where, what was expected, and what to do.

MultiboxError
├── ConfigError        a setting, preset or recipe that does not exist or does not fit
├── DataError          a data set, label file or class list that cannot be used
│   └── ImageError     one image that is missing, truncated or no image
├── WeightsError       a checkpoint or foreign weight file that cannot be read or does not fit
└── MissingExtraError  an optional package is not installed
"""

import difflib
import re
from collections.abc import Iterable

_UNPRINTABLE = re.compile("[\x00-\x1f\x7f-\x9f\u2028-\u202e\u2066-\u2069]")
_MOST_LETTERS, _LAST_LETTERS = 1500, 300


class MultiboxError(Exception):
    """A mistake that the user can correct; the command line prints it as one sentence and exits with 2.

    The message is one line of bounded length, whatever files and values it quotes.
    """

    def __init__(self, message: str = "") -> None:
        super().__init__(one_line(message))


class ConfigError(MultiboxError):
    """A setting, preset or recipe that does not exist or does not fit."""


class DataError(MultiboxError):
    """A data set, label file or class list that cannot be used.

    `kind` is the id under which `multibox doctor` reports it; empty where the reason for which something is left out
    tells it.
    """

    def __init__(self, message: str, *, kind: str = "") -> None:
        super().__init__(message)
        self.kind = kind


class ImageError(DataError):
    """One image that is missing, truncated or no image at all."""


class WeightsError(MultiboxError):
    """A checkpoint or foreign weight file that cannot be read or does not fit the model."""


class MissingExtraError(MultiboxError):
    """An optional package is not installed."""

    def __init__(self, purpose: str, extra: str) -> None:
        super().__init__(f"{purpose} needs packages that are not installed: pip install 'multibox[{extra}]'")
        self.purpose, self.extra = purpose, extra

    def __reduce__(self) -> tuple[type[Exception], tuple[str, str]]:
        # By default an exception is unpickled from its message alone, but this class takes two arguments
        return type(self), (self.purpose, self.extra)


def one_line(text: str) -> str:
    """Return a text with its control characters written as escapes and the middle of a long one left out."""
    if len(text) > _MOST_LETTERS:
        text = f"{text[: _MOST_LETTERS - _LAST_LETTERS]} ... {text[-_LAST_LETTERS:]}"
    return _UNPRINTABLE.sub(lambda letter: letter[0].encode("unicode_escape").decode("ascii"), text)


def in_words(error: BaseException) -> str:
    """Return what went wrong in one line: a message for the user as it is, what the system refused by its file."""
    if isinstance(error, MultiboxError):
        return one_line(str(error))
    if isinstance(error, OSError) and error.errno is not None:
        # Some calls do not say which file it was, for instance if the disk is full
        what = "a file cannot be written" if error.filename is None else f"{error.filename} cannot be read or written"
        return one_line(f"{what} ({error.strerror})")
    return f"{type(error).__name__}: {error}"


def did_you_mean(name: str, known: Iterable[str]) -> str:
    """Return ", did you mean 'x'?" for the nearest known name, or an empty string."""
    near = difflib.get_close_matches(name, list(known), n=1)
    return f", did you mean {near[0]!r}?" if near else ""
