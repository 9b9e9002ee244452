"""Errors for users: each message is one line that says what is wrong, where, and how to fix it.

The command line prints the message and exits with 2. The HTTP service answers with the message and its ``code``.
"""

from __future__ import annotations

import difflib
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from typing import Literal, TypeAlias, get_args

MediaCode: TypeAlias = Literal[
    "missing",
    "broken-link",
    "directory",
    "unreadable",
    "empty",
    "undecodable",
    "truncated",
    "silent",
    "no-speech",
    "not-finite",
    "too-short",
    "too-long",
    "too-large",
]


class SaySeeError(Exception):
    """Something that the user can fix: a file, a setting, a manifest, an index.

    Attributes:
        code: what went wrong, for programs: kebab-case, stable across releases.
    """

    code: str = "error"


class MediaError(SaySeeError):
    """An audio or image file that cannot be used.

    Attributes:
        code: the reason, one of ``MediaError.CODES``.
    """

    CODES: tuple[str, ...] = get_args(MediaCode)

    def __init__(self, code: MediaCode, message: str) -> None:
        if code not in self.CODES:
            raise ValueError(f"unknown code of a media error: {code!r}")
        super().__init__(message)
        self.code: MediaCode = code

    def __reduce__(self) -> tuple[type[MediaError], tuple[str, str]]:
        return MediaError, (self.code, str(self))  # pickle: worker processes return their errors


class InputTypeError(SaySeeError, TypeError):
    """A value given to a function of Python has a type that it does not take; the message names its place."""

    code = "invalid-type"


class ManifestError(SaySeeError):
    """A manifest breaks its schema; the message names the row."""

    code = "invalid-manifest"


class ConfigError(SaySeeError):
    """A setting is unknown, has the wrong type, or cannot be combined with another."""

    code = "invalid-setting"


class CheckpointError(SaySeeError):
    """A model folder or checkpoint is missing, incomplete or belongs to another run."""

    code = "invalid-checkpoint"


class LostProcessError(SaySeeError):
    """Another process of the same training has ended."""

    code = "lost-process"


class MissingExtraError(SaySeeError):
    """A feature needs an optional extra that is not installed."""

    code = "missing-extra"

    def __init__(self, feature: str, extra: str) -> None:
        super().__init__(f"{feature} needs an optional extra; install it with: pip install 'saysee[{extra}]'")
        self.feature, self.extra = feature, extra

    def __reduce__(self) -> tuple[type[MissingExtraError], tuple[str, str]]:
        return MissingExtraError, (self.feature, self.extra)


@contextmanager
def extra_needed(feature: str, extra: str) -> Iterator[None]:
    """Turns the ImportError of a missing extra into a :class:`MissingExtraError`.

    An ImportError of SaySee itself passes unchanged: no installation would fix it.
    """
    try:
        yield
    except ImportError as error:  # psycopg raises one without a name where its libpq is missing
        if error.name is not None and error.name.partition(".")[0] == "saysee":
            raise
        raise MissingExtraError(feature, extra) from error


def did_you_mean(name: str, names: Iterable[str]) -> str:
    """A suggestion to append to the message that a name is unknown; empty if no other resembles it."""
    near = difflib.get_close_matches(name, list(names), 1, cutoff=0.7)
    return f" (did you mean {near[0]!r}?)" if near else ""
