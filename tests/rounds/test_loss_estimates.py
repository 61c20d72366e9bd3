"""First-order estimates of what each site's update did to the loss: exact where their assumption holds, else off by the second order."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from fedpipe_operator.rounds.loss_estimates import loss_estimates
from fedpipe_operator.rounds.records import Contribution, LossEstimate, RoundEvaluation, SiteEvaluation

START = np.array([4.0, 0.0, 0.0])
"""Where a round starts; the optimum of the toy loss is at 0, and sites move towards it on the whole."""


def toy_loss(x: np.ndarray) -> float:
    """A quadratic loss ½‖x‖²."""
    return float(x @ x / 2)


def evaluated(round_: int, losses: dict[str, float | None], *, targets: int = 10) -> RoundEvaluation:
    sites = {site: SiteEvaluation(samples=targets, targets=targets, loss=loss) for site, loss in losses.items()}
    known = [loss for loss in losses.values() if loss is not None]
    return RoundEvaluation(round=round_, finished_at=0.0, loss=sum(known) / len(known) if known else None, sites=sites)


def contribution(site: str, progress: float | None, share: float = 0.5) -> Contribution:
    return Contribution(site=site, attempt=0, sha256="", samples=1, share=share, progress=progress)


def a_round(increments: dict[str, np.ndarray], shares: dict[str, float]) -> tuple[dict[str, LossEstimate], np.ndarray]:
    """The estimates of a round of these increments on the toy loss, and the round's own increment."""
    whole = sum((shares[site] * one for site, one in increments.items()), np.zeros(3))
    parts = {site: shares[site] * float(one @ whole) / float(whole @ whole) for site, one in increments.items()}
    contributions = [contribution(site, part, shares[site]) for site, part in parts.items()]
    before, after = (evaluated(round_, {"any": toy_loss(x)}) for round_, x in ((0, START), (1, START + whole)))
    return loss_estimates(contributions, before, after), whole


SHARES = {"a": 0.5, "b": 0.3, "c": 0.2}
INCREMENTS = {"a": np.array([-1.0, 0.6, 0.0]), "b": np.array([-0.4, -1.0, 0.2]), "c": np.array([0.5, 0.0, -0.3])}
"""Their average is −0.52 along the first axis, towards the optimum; c moves away from it."""


def test_on_a_quadratic_loss_the_parts_are_exact_if_the_gradient_is_along_the_aggregate() -> None:
    estimates, whole = a_round(INCREMENTS, SHARES)

    gradient = START + whole / 2  # the mean gradient of a quadratic on the way, which is what moved the loss
    assert np.allclose(np.cross(gradient, whole), 0)
    for site, increment in INCREMENTS.items():
        assert estimates[site].change == pytest.approx(float(gradient @ (SHARES[site] * increment)), rel=1e-12)


def test_the_parts_add_up_to_the_whole_change() -> None:
    estimates, whole = a_round(INCREMENTS, SHARES)

    assert sum(one.change for one in estimates.values()) == pytest.approx(toy_loss(START + whole) - toy_loss(START), rel=1e-12)


def test_a_site_that_opposes_the_aggregate_raised_the_loss_and_it_would_be_lower_without_it() -> None:
    estimates, whole = a_round(INCREMENTS, SHARES)

    assert estimates["c"].change > 0 > estimates["a"].change
    assert estimates["c"].loss_without < toy_loss(START + whole) < estimates["a"].loss_without


def test_the_loss_without_a_site_is_wrong_by_the_second_order_only() -> None:
    """Updates of a tenth leave a hundredth of the error."""

    def error(scale: float) -> float:
        increments = {site: scale * one for site, one in INCREMENTS.items()}
        estimates, _ = a_round(increments, SHARES)
        rest = sum((SHARES[site] * increments[site] for site in "ac"), np.zeros(3))
        return estimates["b"].loss_without - toy_loss(START + rest)

    assert error(1.0) != pytest.approx(0, abs=1e-3)
    assert error(0.1) == pytest.approx(error(1.0) / 100, rel=1e-6)


def test_a_site_that_alone_knows_a_rare_direction_does_not_look_harmful() -> None:
    """Three sites move alike; the fourth mostly across them, towards what only its data say. Its part is below its share."""
    common, rare = np.array([-1.0, 0.0, 0.0]), np.array([-0.3, 1.0, 0.0])
    estimates, whole = a_round({"a": common, "b": common, "c": common, "rare": rare}, dict.fromkeys(("a", "b", "c", "rare"), 0.25))

    change = toy_loss(START + whole) - toy_loss(START)
    assert 0 < estimates["rare"].change / change < 0.25
    assert all(one.change < 0 and one.loss_without > toy_loss(START + whole) for one in estimates.values())


@given(
    parts=st.lists(st.floats(-1, 3), min_size=1, max_size=8).filter(lambda parts: sum(parts) > 0.1),
    losses=st.tuples(st.floats(0.1, 10), st.floats(0.1, 10)),
)
def test_where_the_loss_fell_only_a_site_that_moved_against_the_round_looks_harmful(
    parts: list[float], losses: tuple[float, float]
) -> None:
    before, after = sorted(losses, reverse=True)
    named = {str(index): part / sum(parts) for index, part in enumerate(parts)}

    estimates = loss_estimates([contribution(*one) for one in named.items()], evaluated(0, {"any": before}), evaluated(1, {"any": after}))

    assert all(estimates[site].loss_without >= after for site, part in named.items() if part >= 0)
    assert all(estimates[site].loss_without <= after for site, part in named.items() if part <= 0)
    assert sum(one.change for one in estimates.values()) == pytest.approx(after - before, abs=1e-9)


def test_the_change_is_that_of_the_sites_that_evaluated_both_adapters_weighted_by_their_targets() -> None:
    before = evaluated(1, {"a": 3.0, "b": 2.0, "gone": 9.0})
    after = evaluated(2, {"a": 1.0, "b": 1.0, "new": 0.5})
    after = after.model_copy(update={"sites": after.sites | {"b": after.sites["b"].model_copy(update={"targets": 30})}})

    estimates = loss_estimates([contribution("a", 1.0)], before, after)

    assert estimates["a"].change == pytest.approx((-2.0 * 10 - 1.0 * 30) / 40)


@pytest.mark.parametrize(
    ("before", "after"),
    [({"a": 3.0}, {"b": 1.0}), ({"a": None}, {"a": 1.0}), ({"a": 3.0}, {"a": None}), ({}, {"a": 1.0}), ({"a": float("nan")}, {"a": 1.0})],
)
def test_where_no_site_measured_both_losses_nothing_is_estimated(before: dict[str, float | None], after: dict[str, float | None]) -> None:
    assert loss_estimates([contribution("a", 1.0)], evaluated(0, before), evaluated(1, after)) == {}


def test_of_a_site_whose_progress_is_not_known_nothing_is_estimated() -> None:
    contributions = [contribution("a", 1.0), contribution("old", None)]

    assert set(loss_estimates(contributions, evaluated(0, {"a": 3.0}), evaluated(1, {"a": 1.0}))) == {"a"}


def test_no_loss_is_estimated_below_zero_or_beyond_all_bounds() -> None:
    contributions = [contribution("harmful", -5.0), contribution("absurd", 1e6)]

    estimates = loss_estimates(contributions, evaluated(0, {"a": 3.0}), evaluated(1, {"a": 1.0}))

    assert estimates == {"harmful": LossEstimate(change=10.0, loss_without=0.0)}
