"""What a run reports of its sites' evaluations: the mean over all their data, in which no site counts for more than its bounds."""

import math
from collections.abc import Mapping
from typing import Final, NamedTuple

import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

from fedpipe_operator.admission import AdmittedEvaluation
from fedpipe_operator.rounds.evaluation import SiteBounds, aggregate_metrics
from fedpipe_operator.rounds.loss_estimates import loss_estimates
from fedpipe_operator.rounds.records import Contribution, RoundEvaluation
from fedpipe_trainer.contract import EvaluateResult, Measured, Outcome, RunRef, perplexity_of

MAX_LENGTH: Final = 512
"""Tokens of a sample, and so the targets that the admission lets a site state for each."""
MOST_SAMPLES: Final = 1000
"""`evaluation.maxSamples`."""
LIAR: Final = "liar"


class Said(NamedTuple):
    """What a site says of its evaluation."""

    samples: int
    targets: int
    loss: float | None

    def of_loss(self, loss: float | None) -> "Said":
        return self._replace(loss=loss)


def reported(said: Mapping[str, Said], *, max_site_weight: float | None = None) -> RoundEvaluation:
    """The evaluation of these sites, each of whose accuracy is its loss."""
    admitted = {site: AdmittedEvaluation(_result(one)) for site, one in said.items()}
    return aggregate_metrics(1, admitted, {}, bounds=SiteBounds(MOST_SAMPLES, max_site_weight), now=0.0)


def _result(said: Said) -> EvaluateResult:
    loss = said.loss
    return EvaluateResult(
        run=RunRef(namespace="default", name="toy", uid="1"),
        site="a",
        round=1,
        attempt=0,
        outcome=Outcome.COMPLETED,
        measured=Measured(),
        samples=said.samples,
        targets=said.targets,
        loss=loss,
        metrics={} if loss is None else {"accuracy": loss, "perplexity": perplexity_of(loss)},
    )


THREE: Final = {"a": Said(100, 2000, 1.0), "b": Said(100, 2000, 3.0), LIAR: Said(100, 100 * MAX_LENGTH, 10.0)}
"""Two sites of 20 target tokens a sample, and one that states as many as its samples can have."""


def test_of_three_sites_one_that_states_512_targets_a_sample_makes_half_of_the_loss_and_not_93_percent() -> None:
    found = reported(THREE)

    assert found.loss == (10.0 + (1.0 + 3.0) / 2) / 2
    assert found.metrics["perplexity"] == math.exp(6.0)
    assert found.metrics["accuracy"] == pytest.approx(14 / 3), "by samples, of which it has a third"
    assert found.sites[LIAR].targets == 3 * 20 * 100


def test_of_many_sites_one_that_states_512_targets_a_sample_counts_three_times_and_not_25_times() -> None:
    honest = {f"site-{at}": Said(100, 2000, 1.0) for at in range(8)}

    found = reported(honest | {LIAR: Said(100, 100 * MAX_LENGTH, 10.0)})

    assert found.loss == pytest.approx((8 * 1.0 + 3 * 10.0) / 11)


def test_a_site_of_many_samples_makes_half_of_any_metric() -> None:
    """It says that it has the most that a run asks for, where the others have 20."""
    few, many = Said(20, 400, 1.0), Said(10**6, 20 * 10**6, 0.0)

    found = reported({"a": few, "b": few, LIAR: many})

    assert (found.loss, found.metrics["accuracy"]) == (0.5, 0.5)


def test_a_site_that_honestly_has_most_of_the_samples_counts_for_half_too() -> None:
    """Nothing tells it from one that only says so."""
    found = reported({"a": Said(800, 16000, 1.0), "b": Said(100, 2000, 2.0), "c": Said(100, 2000, 4.0)})

    assert (found.loss, found.metrics["accuracy"]) == (2.0, 2.0)


def test_a_run_that_bounds_no_sites_weight_reports_the_mean_over_all_data() -> None:
    found = reported({"a": Said(800, 16000, 1.0), "b": Said(100, 2000, 2.0), "c": Said(100, 2000, 4.0)}, max_site_weight=1.0)

    assert found.metrics["accuracy"] == found.loss == pytest.approx(1.4)


@pytest.mark.parametrize(("max_site_weight", "loss"), [(None, (1.0 + 2.0 * 25.6) / 26.6), (0.6, 1.6), (0.5, 1.5)])
def test_of_two_sites_each_counts_as_it_says_unless_the_run_says_how_much(max_site_weight: float | None, loss: float) -> None:
    """Which of two states the wrong targets, nobody can tell."""
    found = reported({"a": Said(100, 2000, 1.0), "b": Said(100, 100 * MAX_LENGTH, 2.0)}, max_site_weight=max_site_weight)

    assert found.loss == pytest.approx(loss)
    assert found.sites["b"].targets == 100 * MAX_LENGTH


def test_a_site_without_a_loss_still_tells_how_many_targets_a_sample_has() -> None:
    """Beside a training that diverged, a liar is bounded by targets, as one of three; the half is of those that have a loss."""
    found = reported(THREE | {"b": Said(100, 2000, None)})

    assert found.loss == pytest.approx((1.0 + 3 * 10.0) / 4)


def test_a_site_of_few_targets_is_not_rounded_away() -> None:
    sparse = {site: Said(1000, 10, 1.0) for site in ("a", "b", "c")}

    found = reported(sparse | {"small": Said(1, 1, 2.0)})

    assert found.sites["small"].targets == 1


def test_what_each_site_did_to_the_loss_is_of_the_loss_that_is_reported() -> None:
    before, after = reported(THREE), reported({site: one.of_loss(2.0 * (one.loss or 0)) for site, one in THREE.items()})
    alone = Contribution(site="a", attempt=0, sha256="", samples=1, share=1.0, progress=1.0)

    estimates = loss_estimates([alone], before, after)

    assert estimates["a"].change == (after.loss or 0) - (before.loss or 0) == 6.0


sites_that_agree = st.lists(st.tuples(st.integers(1, MOST_SAMPLES), st.integers(10, 30), st.floats(0, 20)), min_size=1, max_size=9)
"""Samples, targets per sample and losses, of which no targets are above three times the median."""


@given(sites_that_agree)
def test_without_outliers_what_is_reported_is_the_mean_over_all_data_to_the_last_bit(sites: list[tuple[int, int, float]]) -> None:
    said = {f"site-{at}": Said(samples, samples * rate, loss) for at, (samples, rate, loss) in enumerate(sites)}
    for counts in ([one.samples for one in said.values()], [one.targets for one in said.values()]):
        assume(len(sites) < 3 or 2 * max(counts) <= sum(counts))

    found = reported(said)

    targets, samples = (sum(one[at] for one in said.values()) for at in (1, 0))
    assert found.loss == math.fsum((one.loss or 0) * (one.targets / targets) for one in said.values())
    assert found.metrics["accuracy"] == math.fsum((one.loss or 0) * (one.samples / samples) for one in said.values())
    assert {site: (one.samples, one.targets) for site, one in found.sites.items()} == {site: one[:2] for site, one in said.items()}


lies = st.integers(1, 10**7).flatmap(lambda samples: st.tuples(st.just(samples), st.integers(1, samples * MAX_LENGTH)))
"""Samples and targets, as many as the admission lets pass."""


def influence(honest: Mapping[str, Said], lie: tuple[int, int], metric: str) -> float:
    """How far the reported figure moves when the liar's own moves by 1."""

    def value(loss: float) -> float:
        found = reported(honest | {LIAR: Said(*lie, loss)})
        return found.metrics.get(metric, found.loss or 0.0)

    return value(1.0) - value(0.0)


@given(st.lists(st.tuples(st.integers(1, 5000), st.integers(1, 100), st.floats(0, 20)), min_size=2, max_size=8), lies)
def test_whatever_one_site_of_three_or_more_states_it_is_at_most_half_of_each_figure(
    sites: list[tuple[int, int, float]], lie: tuple[int, int]
) -> None:
    honest = {f"site-{at}": Said(samples, samples * rate, loss) for at, (samples, rate, loss) in enumerate(sites)}

    assert -1e-9 <= influence(honest, lie, "loss") <= 0.5 + 1e-9
    assert -1e-9 <= influence(honest, lie, "accuracy") <= 0.5 + 1e-9


@given(st.integers(1, MOST_SAMPLES), st.lists(st.integers(20, 40), min_size=3, max_size=9), lies)
def test_whatever_one_site_states_its_samples_count_three_times_as_much_as_those_of_others_at_most(
    samples: int, rates: list[int], lie: tuple[int, int]
) -> None:
    """The others have as many samples each, and are so alike that none has half."""
    honest = {f"site-{at}": Said(samples, samples * rate, 1.0) for at, rate in enumerate(rates)}
    most = 3 * max(rates) * min(lie[0], MOST_SAMPLES)

    bound = most / (most + samples * sum(rates))

    assert influence(honest, lie, "loss") <= min(0.5, bound) + 1e-9
