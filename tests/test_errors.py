"""Errors that say what is missing say it of extras alone."""

from __future__ import annotations

import pytest

from saysee.errors import MissingExtraError, extra_needed


@pytest.mark.parametrize("error", [ModuleNotFoundError("no psycopg", name="psycopg"), ImportError("no pq wrapper")])
def test_what_an_extra_brings_and_is_not_there_is_told_with_the_extra(error):
    with pytest.raises(MissingExtraError, match=r"saysee\[postgres\]"), extra_needed("an index", "postgres"):
        raise error


def test_a_broken_import_of_saysee_itself_is_not_taken_for_a_missing_extra():
    with pytest.raises(ImportError) as raised, extra_needed("an index", "postgres"):
        from saysee.search.index.store import nothing_of_this_name  # noqa: F401
    assert not isinstance(raised.value, MissingExtraError)
