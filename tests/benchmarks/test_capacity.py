"""The simulation of readers has the waiting times of queueing theory, and a store is measured."""

from __future__ import annotations

import re

import numpy as np
import pytest
from benchmarks.capacity import latencies, readers_table, service_times, store_table

from saysee import SaySeeError


def test_one_reader_waits_as_long_as_the_theory_of_constant_service_says():
    """M/D/1: at a load of one half, half of a service time on average."""
    times = latencies(np.full(200_000, 0.01), rate=50, readers=1, at_once=1)
    assert times.mean() == pytest.approx(0.015, rel=0.02)
    assert times.min() == pytest.approx(0.01)


def test_a_balancer_that_knows_who_is_free_makes_several_readers_one():
    services = service_times(0.01, 0.02, 50_000)
    apart = latencies(services, rate=300, readers=4, at_once=1)
    together = latencies(services, rate=300, readers=4, at_once=1, to_first_free=True)
    one = latencies(services, rate=300, readers=1, at_once=4)
    np.testing.assert_allclose(together, one)
    assert np.quantile(together, 0.99) < np.quantile(apart, 0.99)


def test_service_times_have_the_median_and_percentile_that_were_measured():
    assert np.quantile(service_times(0.155, 0.187, 200_000), (0.5, 0.99)) == pytest.approx((0.155, 0.187), rel=0.01)
    for p50, p99 in ((0.2, 0.1), (0, 0.1)):
        with pytest.raises(SaySeeError, match=r"0\.1"):
            service_times(p50, p99, 10)


def test_the_table_ends_with_the_first_number_that_holds_with_one_down():
    lines = readers_table(1_000, 0.015, 0.025, 16, 0.2, 20_000).splitlines()
    assert [line.split(" | ")[0] for line in lines[4:]] == ["| 1", "| 2"]
    with pytest.raises(SaySeeError, match=r"0\.3"):
        readers_table(1_000, 0.1, 0.3, 8, 0.2, 1_000)


def test_a_store_is_filled_and_measured(tmp_path):
    row = store_table(str(tmp_path / "index"), rows=300, queries=3, batch=100).splitlines()[-1]
    rows, _, *numbers = (cell.strip() for cell in row.strip("|").split("|"))
    assert rows == "300"
    assert 2_048 < float(re.sub(",", "", numbers[0])) < 10_000
