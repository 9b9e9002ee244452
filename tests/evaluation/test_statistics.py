"""Estimates over seeds: t-intervals against printed tables, and by hand."""

from __future__ import annotations

import math

import pytest

from saysee.evaluation.statistics import estimate, paired_difference, t_quantile


def test_t_quantiles_are_those_of_the_tables() -> None:
    known = {1: 12.7062, 2: 4.3027, 3: 3.1824, 4: 2.7764, 5: 2.5706, 9: 2.2622, 30: 2.0423, 120: 1.9799}
    for degrees, t in known.items():
        assert t_quantile(degrees) == pytest.approx(t, abs=5e-5)
    with pytest.raises(ValueError, match="degree"):
        t_quantile(0)


def test_an_interval_worked_by_hand() -> None:
    found = estimate([1.0, 2.0, 3.0])  # s is 1, t is 4.3027
    assert found is not None
    assert found.mean == 2
    assert found.interval == pytest.approx((2 - 4.3027 / math.sqrt(3), 2 + 4.3027 / math.sqrt(3)), abs=1e-4)
    one = estimate([7.0])
    assert one is not None
    assert (one.mean, one.interval) == (7.0, None)
    assert estimate([]) is None


def test_a_paired_difference_cancels_the_effect_of_a_seed() -> None:
    found = paired_difference({3: 99.0, 0: 12.0, 1: 23.0, 2: 31.0}, {2: 30.0, 1: 20.0, 0: 10.0})
    assert found is not None
    assert (found.mean, found.seeds) == (2.0, 3)  # 2, 3 and 1: the spread of 10 to 30 is gone
    assert found.interval == pytest.approx((2 - 4.3027 / math.sqrt(3), 2 + 4.3027 / math.sqrt(3)), abs=1e-4)
