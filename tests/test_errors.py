"""Errors carry a stable code, and a missing extra is named only where an extra is missing."""

from __future__ import annotations

import pickle
import re

import pytest

from saysee.errors import (
    CheckpointError,
    ConfigError,
    LostProcessError,
    ManifestError,
    MediaError,
    MissingExtraError,
    SaySeeError,
    extra_needed,
)


@pytest.mark.parametrize("error", [ModuleNotFoundError("no psycopg", name="psycopg"), ImportError("no pq wrapper")])
def test_the_import_of_a_missing_extra_names_the_extra(error):
    with pytest.raises(MissingExtraError, match=r"saysee\[postgres\]"), extra_needed("an index", "postgres"):
        raise error


def test_a_broken_import_of_saysee_itself_is_no_missing_extra():
    with pytest.raises(ImportError) as raised, extra_needed("an index", "postgres"):
        from saysee.search.index.store import nothing_of_this_name  # noqa: F401
    assert not isinstance(raised.value, MissingExtraError)


def test_every_error_has_a_code_of_its_own_and_keeps_it_between_processes():
    kinds = [SaySeeError, ManifestError, ConfigError, CheckpointError, LostProcessError, MissingExtraError]
    codes = [kind.code for kind in kinds]
    assert len(set(codes)) == len(kinds)
    for code in (*codes, *MediaError.CODES):
        assert re.fullmatch("[a-z]+(-[a-z]+)*", code), code
    for code in MediaError.CODES:
        copy = pickle.loads(pickle.dumps(MediaError(code, "a.wav: message")))
        assert (copy.code, str(copy)) == (code, "a.wav: message")
    with pytest.raises(ValueError, match="of-no-kind"):
        MediaError("of-no-kind", "")
