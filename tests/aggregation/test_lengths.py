"""The length of an increment is never understated, whatever cancels in its factors."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from toy_rounds import Fleet

from fedpipe_operator.aggregation import METHODS
from fedpipe_operator.aggregation.factors import Factors
from fedpipe_operator.aggregation.gate import Expected, check
from fedpipe_operator.aggregation.lengths import of_factors, of_product

deterministic = settings(derandomize=True, deadline=None, max_examples=100)
Q_A, Q_B = "base_model.model.layer.0.q.lora_A.weight", "base_model.model.layer.0.q.lora_B.weight"


def random_factors(rng: np.random.Generator, d_out: int, d_in: int, rank: int) -> Factors:
    return Factors(b=rng.standard_normal((d_out, rank), np.float32), a=rng.standard_normal((rank, d_in), np.float32))


def product(factors: Factors) -> np.ndarray:
    return factors.b.astype(np.float64) @ factors.a.astype(np.float64)


def up_to_one_ulp(rng: np.random.Generator, size: float, d_out: int, d_in: int) -> Factors:
    """Two components of this size that cancel each other up to the last bit of float32."""
    b, a = rng.standard_normal((d_out, 1)).astype(np.float32), (size * rng.standard_normal((1, d_in))).astype(np.float32)
    return Factors(b=np.hstack([b, -b]), a=np.vstack([a, np.nextafter(a, np.float32(np.inf))]))


@deterministic
@given(st.integers(0, 2**32 - 1), st.integers(1, 60), st.integers(1, 60), st.integers(1, 8), st.integers(0, 8))
def test_the_length_is_that_of_the_dense_increment(seed: int, d_out: int, d_in: int, rank: int, start_rank: int) -> None:
    rng = np.random.default_rng(seed)
    site, start = random_factors(rng, d_out, d_in, rank), random_factors(rng, d_out, d_in, start_rank) if start_rank else None

    dense = 0.5 * product(site) - (product(start) if start else 0)

    assert of_product(site, 0.5, start) == (pytest.approx(float((dense**2).sum()), rel=1e-6, abs=1e-9),)


@deterministic
@given(st.integers(0, 2**32 - 1), st.integers(1, 60), st.integers(1, 60), st.floats(-20, 30))
def test_the_length_is_never_below_the_true_one(seed: int, d_out: int, d_in: int, exponent: float) -> None:
    factors = up_to_one_ulp(np.random.default_rng(seed), 10.0**exponent, d_out, d_in)
    # Their difference is exact in float64, so that nothing cancels here.
    true = factors.b[:, :1].astype(np.float64) @ (factors.a[:1].astype(np.float64) - factors.a[1:])

    assert of_product(factors, 1.0, None)[0] >= float((true**2).sum())


@pytest.mark.parametrize("method", METHODS)
def test_two_components_that_cancel_up_to_one_float32_ulp_are_refused(fleet: Fleet, method: str) -> None:
    """From trust.md: they pass the gate with norm 0 and a true increment of 10²²."""
    tensors = fleet.tensors("alpha")
    attack = up_to_one_ulp(np.random.default_rng(7), 1e29, 12, 10)
    tensors[Q_A], tensors[Q_B] = np.vstack([attack.a, np.zeros((2, 10), np.float32)]), np.hstack([attack.b, np.zeros((12, 2), np.float32)])
    true = np.linalg.norm(attack.b[:, :1].astype(np.float64) @ (attack.a[:1].astype(np.float64) - attack.a[1:]))

    verdict = _verdict(fleet, tensors, method)

    assert true > 1e21
    assert verdict.reason == "NormTooLarge"


@pytest.mark.parametrize(("method", "reason"), [("FedIT", "NormTooLarge"), ("ZeroPad", "NormTooLarge"), ("Exact", "")])
def test_b_of_0_and_a_of_1e30_is_refused_where_a_and_b_are_averaged_apart(fleet: Fleet, method: str, reason: str) -> None:
    """From trust.md: the site's own product is 0, and that of the averages is not."""
    tensors = fleet.tensors("alpha")
    tensors[Q_A], tensors[Q_B] = np.full((4, 10), 1e30, np.float32), np.zeros((12, 4), np.float32)

    assert _verdict(fleet, tensors, method).reason == reason


def test_factors_that_are_averaged_apart_are_measured_from_those_that_the_site_started_from() -> None:
    start = Factors(b=np.float32([[1], [2]]), a=np.float32([[3, 4]]))
    site = Factors(b=np.float32([[1, 0], [2, 0]]), a=np.float32([[3, 4], [0, 7]]))

    assert of_factors(site, 1.0, start) == (pytest.approx(0, abs=1e-9), 0, 49)
    assert of_factors(site, 2.0, None) == (pytest.approx(4 * 5 * 25), 4 * 5, 25 + 49)


def _verdict(fleet: Fleet, tensors: dict[str, np.ndarray], method: str):  # noqa: ANN202 -- a `Verdict`
    candidate = fleet.candidate("alpha", tensors)
    expected = Expected(plan=fleet.plan(), site="alpha", max_norm=1e4, squared_lengths=METHODS[method].squared_lengths)
    return check(candidate.result, candidate.source, expected)
