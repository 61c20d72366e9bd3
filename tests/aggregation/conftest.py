"""Fixtures of the aggregation's tests."""

import io

import pytest
from toy_rounds import HEAD, Fleet


@pytest.fixture(scope="session")
def fleet() -> Fleet:
    """Three heterogeneous sites, two weights (one of which one site does not train) and a head."""
    return Fleet(
        weights={"layer.0.q": (12, 10), "layer.0.v": (10, 14)},
        ranks={"alpha": {"layer.0.q": 4, "layer.0.v": 2}, "beta": {"layer.0.q": 2}, "gamma": {"layer.0.q": 1, "layer.0.v": 3}},
        samples={"alpha": 100, "beta": 30, "gamma": 7},
        head={HEAD: (3, 10)},
    )


@pytest.fixture
def sink() -> io.BytesIO:
    return io.BytesIO()
