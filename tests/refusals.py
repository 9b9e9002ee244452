"""What a refusal is to a user: an error of one line that names what is wrong."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest


def refused(error: type[Exception], action: Callable[[], Any], *words: object) -> None:
    """Asserts that an action raises this error, in one line that has all the words."""
    with pytest.raises(error) as refusal:
        action()
    assert "\n" not in str(refusal.value)
    for word in words:
        assert str(word) in str(refusal.value)
