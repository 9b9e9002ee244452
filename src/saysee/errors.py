"""The errors a user may meet.

Each message is one line that says what is wrong, where, and the mend; the command line prints it and exits with 2.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager


class SaySeeError(Exception):
    """A mistake in what was given to SaySee (a file, a setting, a manifest), told in one line."""


class MediaError(SaySeeError):
    """A sound or a picture was refused.

    Attributes:
        kind: the reason as one of ``MediaError.KINDS``, for tables and counts.
    """

    KINDS = (
        "missing",
        "broken link",
        "directory",
        "unreadable",
        "empty",
        "undecodable",
        "truncated",
        "silent",
        "not finite",
        "too short",
        "too long",
        "too large",
    )

    def __init__(self, kind: str, message: str) -> None:
        if kind not in self.KINDS:
            raise ValueError(f"unknown kind of media error: {kind!r}")
        super().__init__(message)
        self.kind = kind

    def __reduce__(self) -> tuple[type[MediaError], tuple[str, str]]:
        return MediaError, (self.kind, str(self))  # pickle, which brings errors back from worker processes


class ManifestError(SaySeeError):
    """A manifest breaks its schema; the message names the row."""


class ConfigError(SaySeeError):
    """A setting is unknown, of the wrong type, or does not go with another."""


class CheckpointError(SaySeeError):
    """A model folder or a checkpoint is missing, incomplete or of another run."""


class LostProcessError(SaySeeError):
    """Another of the processes that train together is gone."""


class MissingExtraError(SaySeeError):
    """A feature needs an optional extra that is not installed."""

    def __init__(self, feature: str, extra: str) -> None:
        super().__init__(f"{feature} needs an optional part: pip install 'saysee[{extra}]'")
        self.feature, self.extra = feature, extra

    def __reduce__(self) -> tuple[type[MissingExtraError], tuple[str, str]]:
        return MissingExtraError, (self.feature, self.extra)


@contextmanager
def extra_needed(feature: str, extra: str) -> Iterator[None]:
    """Around imports: what an optional extra brings and is not there is a :class:`MissingExtraError`.

    What is wrong with an import of SaySee itself stays as it is: no installation would mend that.
    """
    try:
        yield
    except ImportError as error:  # psycopg raises a plain one, without a name, where its libpq is missing
        if error.name is not None and error.name.partition(".")[0] == "saysee":
            raise
        raise MissingExtraError(feature, extra) from error
