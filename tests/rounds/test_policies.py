"""The policies one by one: values in, values out."""

import math
from collections.abc import Mapping, Sequence
from statistics import median
from typing import Final

import pytest
from hypothesis import given
from hypothesis import strategies as st
from stand_in_runs import a_run

from fedpipe_operator.admission import AdmittedEvaluation
from fedpipe_operator.api import Target
from fedpipe_operator.rounds.evaluation import SiteBounds, aggregate_metrics, held_means, robust_mean
from fedpipe_operator.rounds.policies import (
    best_round,
    exported_round,
    is_patience_exhausted,
    is_stalled,
    is_target_reached,
    needed_updates,
    out_of_reach,
    select,
)
from fedpipe_operator.rounds.records import RoundEvaluation, SiteValues
from fedpipe_trainer.contract import EvaluateResult, Measured, Outcome, RunRef

names = st.lists(st.text("abcdef", min_size=1, max_size=4), unique=True, min_size=1, max_size=12)


@pytest.mark.parametrize(
    ("quorum", "matched", "per_round", "expected"),
    [(0.8, 5, None, 4), (0.8, 10, 5, 4), (1.0, 3, None, 3), (0.01, 3, None, 1), (0.7, 10, None, 7), (0.5, 3, None, 2), (0.8, 3, 10, 3)],
)
def test_a_quorum_is_a_share_of_the_sites_that_were_asked_for(quorum: float, matched: int, per_round: int | None, expected: int) -> None:
    assert needed_updates(quorum, matched=matched, per_round=per_round) == expected


KRUM: Final = {"rule": "Krum"}
NEEDS: Final = "aggregation.rule Krum with maliciousSites 1 needs the updates of 5 sites, and {} can send one: add sites"


@pytest.mark.parametrize(
    ("quorum", "count", "reason"),
    [(0.5, 4, "RuleOutOfReach"), (1.0, 4, "QuorumOutOfReach"), (0.5, 2, "QuorumOutOfReach")],
    ids=["the rule alone", "the quorum and the rule", "far too few"],
)
def test_a_round_out_of_reach_is_so_for_the_quorum_or_else_for_the_rule_and_names_both(quorum: float, count: int, reason: str) -> None:
    spec = a_run(6, aggregation=KRUM, sites={"quorum": quorum}).spec

    found, message = out_of_reach(spec, matched=6, count=count, message="lost")

    assert found == reason
    assert message.startswith(f"lost; {NEEDS.format(count)}")


def test_a_round_that_has_the_sites_for_its_rule_is_out_of_reach_for_its_quorum_alone() -> None:
    spec = a_run(6, aggregation=KRUM, sites={"quorum": 1.0}).spec

    assert out_of_reach(spec, matched=6, count=5, message="lost") == ("QuorumOutOfReach", "lost")


AMPLE: Final = SiteBounds(10**6)


def an_aggregate(
    round_: int,
    results: Mapping[str, EvaluateResult],
    missing: Mapping[str, str] | None = None,
    *,
    bounds: SiteBounds = AMPLE,
    now: float = 0.0,
) -> RoundEvaluation:
    admitted = {site: AdmittedEvaluation(result) for site, result in results.items()}
    return aggregate_metrics(round_, admitted, missing or {}, bounds=bounds, now=now)


@given(names, st.integers(1, 5), st.integers(1, 99))
def test_the_choice_of_sites_does_not_depend_on_their_order(sites: list[str], per_round: int, round_: int) -> None:
    chosen = select(sites, per_round=per_round, seed="0/toy", round_=round_)

    assert chosen == select(reversed(sites), per_round=per_round, seed="0/toy", round_=round_)
    assert len(chosen) == min(per_round, len(sites))


@given(names, st.integers(1, 5))
def test_a_site_that_leaves_does_not_change_the_choice_of_others(sites: list[str], per_round: int) -> None:
    before = select(sites, per_round=per_round, seed="0/toy", round_=1)
    after = select([site for site in sites if site != sites[0]], per_round=per_round, seed="0/toy", round_=1)

    assert set(before) - {sites[0]} <= set(after)


def test_over_many_rounds_every_site_is_selected() -> None:
    sites = [f"site-{number}" for number in range(10)]
    chosen = [site for round_ in range(1, 101) for site in select(sites, per_round=3, seed="0/toy", round_=round_)]

    assert all(15 <= chosen.count(site) <= 45 for site in sites)


@pytest.mark.parametrize(("metric", "value", "expected"), [("accuracy", 0.9, True), ("accuracy", 0.89, False), ("loss", 0.5, True)])
def test_a_target_is_reached_by_an_equal_or_better_metric(metric: str, value: float, expected: bool) -> None:
    goal = {"accuracy": 0.9, "loss": 0.6}[metric]
    evaluation = an_evaluation(1, loss=value, accuracy=value)

    assert is_target_reached(Target.model_validate({"metric": metric, "value": goal}), evaluation) is expected


def test_the_best_round_is_the_earliest_of_equals_and_never_the_base() -> None:
    evaluations = {round_: an_evaluation(round_, accuracy=value) for round_, value in enumerate([0.9, 0.2, 0.5, 0.5, 0.1])}

    assert best_round(evaluations, "accuracy") == 2
    assert best_round(evaluations, "loss") == 4, "the last, where nobody reported the metric"


@pytest.mark.parametrize(("rounds", "expected"), [(2, False), (3, False), (4, True)])
def test_patience_counts_rounds_since_the_best(rounds: int, expected: bool) -> None:
    accuracy = [0.0, 0.3, 0.5, 0.4, 0.5]
    evaluations = {round_: an_evaluation(round_, accuracy=accuracy[round_]) for round_ in range(rounds + 1)}

    assert is_patience_exhausted(2, evaluations, "accuracy") is expected
    assert not is_patience_exhausted(None, evaluations, "accuracy")


def test_a_metric_that_no_site_reported_never_exhausts_patience() -> None:
    assert not is_patience_exhausted(1, {round_: an_evaluation(round_) for round_ in range(9)}, "bleu")


@pytest.mark.parametrize(
    ("losses", "expected"),
    [((0.5, 0.2, 0.3), 2), ((0.2, 0.2, 0.2), 1), ((0.5, 0.4, 0.1), 3), ((None, 0.4, 0.1), 3), ((None, None, None), 1)],
)
def test_of_rounds_with_the_same_metric_that_of_the_lowest_loss_is_the_result(losses: tuple[float | None, ...], expected: int) -> None:
    spec = a_run().spec
    rounds = {at: an_evaluation(at, loss, accuracy=1.0) for at, loss in enumerate(losses, 1)}

    assert exported_round(spec, rounds | {4: an_evaluation(4, 0.01, accuracy=0.9), 0: an_evaluation(0, 0.0, accuracy=1.0)}) == expected


def test_what_fewer_sites_than_the_quorum_measured_reaches_no_target_and_is_no_best_round() -> None:
    goal = Target.model_validate({"metric": "accuracy", "value": 0.9})
    whole = rounds_by_site([{"a": 0.5, "b": 0.4}, {"a": 0.95, "b": 0.3}])
    few = needing(rounds_by_site([{"a": 0.5, "b": 0.4}, {"a": 0.95}, {"a": 0.5, "b": 0.3}]), 2)

    assert [is_target_reached(goal, one) for one in needing(rounds_by_site([{"a": 0.95}, {"a": 0.95, "b": 0.9}]), 2).values()] == [
        False,
        True,
    ]
    assert best_round(whole, "accuracy") == 2
    assert best_round(few, "accuracy") == 1
    assert best_round(needing(few, 3), "accuracy") == 3, "the last, where no round was measured at enough sites"


@pytest.mark.parametrize("metric", ["accuracy", "loss", "perplexity"])
def test_rounds_that_fewer_sites_than_the_quorum_measured_use_up_no_patience(metric: str) -> None:
    few = needing(rounds_by_site([{"a": 0.5, "b": 0.5}, {"a": 0.4}, {"b": 0.4}]), 2)
    more = needing(rounds_by_site([{"a": 0.5, "b": 0.5}, {"a": 0.4}, {"b": 0.4}, {"a": 0.4, "b": 0.4}]), 2)

    assert not is_patience_exhausted(1, few, metric)
    assert is_patience_exhausted(1, more, metric)
    assert not is_patience_exhausted(2, more, metric)


def test_what_fewer_sites_than_the_quorum_measured_is_no_stall() -> None:
    still = rounds_by_site([{"a": 0.1, "b": 0.1}, {"a": 0.5, "b": 0.5}, {"a": 0.5}, {"a": 0.5}])

    assert is_stalled(still)
    assert not is_stalled(needing(still, 2))


def test_one_site_of_three_makes_no_run_stall_and_hides_no_stall() -> None:
    """It reports a huge loss at first, beside which no improvement of the others counts, or a falling one while theirs stand still."""
    better = [{"a": 0.15 * at, "b": 0.15 * at, "c": 1.0 if at else -400.0} for at in range(6)]
    still = [{"a": 0.5, "b": 0.5, "c": at - 10.0} for at in range(6)]

    assert not is_stalled(rounds_by_site(better))
    assert is_stalled(rounds_by_site(still))


def needing(evaluations: Mapping[int, RoundEvaluation], needed: int) -> dict[int, RoundEvaluation]:
    """The same, of rounds with this quorum."""
    return {at: one.model_copy(update={"needed": needed}) for at, one in evaluations.items()}


EASY_IN_ROUND_1: Final = [{"easy": 0.9}, {"hard": 0.3}, {"easy": 0.95}, {"hard": 0.4}, {"easy": 0.97}, {"hard": 0.5}]
"""Accuracies by site, from round 1 on, of an adapter that gets better from round to round."""
WORSE_AT_THE_END: Final = [*EASY_IN_ROUND_1, {"easy": 0.8}, {"hard": 0.3}]


@pytest.mark.parametrize("metric", ["accuracy", "loss", "perplexity"])
def test_a_round_is_not_the_best_because_it_was_evaluated_by_easier_sites(metric: str) -> None:
    better, worse = (rounds_by_site(rounds) for rounds in (EASY_IN_ROUND_1, WORSE_AT_THE_END))

    assert best_round(better, metric) == 6
    assert best_round(worse, metric) == 6


def test_patience_is_not_exhausted_while_sites_measure_more_than_they_did_before() -> None:
    better, worse = (rounds_by_site(rounds) for rounds in (EASY_IN_ROUND_1, WORSE_AT_THE_END))

    assert not any(is_patience_exhausted(1, {at: better[at] for at in range(1, end + 1)}, "accuracy") for end in range(1, 7))
    assert is_patience_exhausted(2, worse, "accuracy")


def test_a_run_of_pairs_is_judged_by_its_accuracy_or_by_its_margin_of_which_more_is_better() -> None:
    found = {at: (accuracy, margin) for at, (accuracy, margin) in enumerate([(0.5, 0.0), (0.6, -0.2), (0.9, 0.4), (0.8, 1.5)])}
    results = {at: a_result(10, 0.0, targets=10) for at in found}
    rounds = {
        at: an_aggregate(at, {"site": results[at].model_copy(update={"metrics": {"preferenceAccuracy": one, "rewardMargin": other}})})
        for at, (one, other) in found.items()
    }
    reached = [is_target_reached(Target(metric="rewardMargin", value=0.4), rounds[at]) for at in found]

    assert (best_round(rounds, "preferenceAccuracy"), best_round(rounds, "rewardMargin")) == (2, 3)
    assert reached == [False, False, True, True]


def rounds_by_site(rounds: Sequence[Mapping[str, float]]) -> dict[int, RoundEvaluation]:
    def result(accuracy: float) -> EvaluateResult:
        loss = 2 - accuracy
        metrics = {"accuracy": accuracy, "perplexity": math.exp(loss)}
        return a_result(10, accuracy, targets=10, loss=loss).model_copy(update={"metrics": metrics})

    return {at: an_aggregate(at, {site: result(accuracy) for site, accuracy in sites.items()}) for at, sites in enumerate(rounds, start=1)}


@given(st.lists(st.lists(st.floats(0, 9), min_size=3, max_size=3), min_size=1, max_size=6))
def test_means_that_hold_missing_sites_are_the_rounds_own_where_none_is_missing(losses: list[list[float]]) -> None:
    rounds = {
        at: an_aggregate(at, {f"site-{site}": a_result(1, 0.0, targets=1 + site, loss=loss) for site, loss in enumerate(row)})
        for at, row in enumerate(losses)
    }
    by_site = {at: one.by_site("loss") for at, one in rounds.items()}

    assert held_means(by_site, {"site-0", "site-1", "site-2"}) == {at: robust_mean(values) for at, values in by_site.items()}


@given(st.lists(st.tuples(st.integers(1, 50), st.integers(0, 50)), min_size=1, max_size=6))
def test_accuracy_over_sites_is_that_of_their_pooled_data_where_no_share_is_bounded(sites: list[tuple[int, int]]) -> None:
    results = {f"site-{at}": a_result(samples, min(right, samples) / samples) for at, (samples, right) in enumerate(sites)}
    total, right = sum(samples for samples, _ in sites), sum(min(right, samples) for samples, right in sites)

    assert an_aggregate(1, results, bounds=SiteBounds(100, 1.0)).metrics["accuracy"] == pytest.approx(right / total)


def test_perplexity_over_sites_is_the_exponential_of_the_loss_per_token() -> None:
    results = {"few": a_result(1, 0.0, targets=10, loss=1.0), "many": a_result(1, 0.0, targets=30, loss=2.0)}
    results = {site: one.model_copy(update={"metrics": {"perplexity": math.exp(one.loss or 0)}}) for site, one in results.items()}

    assert an_aggregate(1, results).metrics["perplexity"] == pytest.approx(math.exp(1.75))


def test_a_site_without_a_loss_does_not_spoil_the_others() -> None:
    evaluation = an_aggregate(1, {"a": a_result(10, 0.5, loss=1.0), "b": a_result(10, 0.5, loss=None)}, {"c": "late"}, now=7.0)

    assert evaluation.loss == 1.0
    assert evaluation.missing == {"c": "late"}
    assert evaluation.finished_at == 7.0


def test_a_loss_beyond_all_bounds_still_has_a_perplexity() -> None:
    huge = a_result(10, 0.5, loss=1e9).model_copy(update={"metrics": {"perplexity": 1.0}})

    perplexity = an_aggregate(1, {"a": huge}).metrics["perplexity"]

    assert 1e300 < perplexity < math.inf


def an_evaluation(round_: int, loss: float | None = None, **metrics: float) -> RoundEvaluation:
    return RoundEvaluation(round=round_, finished_at=0.0, loss=loss, metrics=metrics)


def a_result(samples: int, accuracy: float, *, targets: int = 1, loss: float | None = 1.0) -> EvaluateResult:
    return EvaluateResult(
        run=RunRef(namespace="default", name="toy", uid="1"),
        site="a",
        round=1,
        attempt=0,
        outcome=Outcome.COMPLETED,
        measured=Measured(),
        samples=samples,
        targets=targets,
        loss=loss,
        metrics={"accuracy": accuracy},
    )


def test_samples_beyond_what_the_run_asks_for_do_not_count() -> None:
    results = {"honest": a_result(100, 0.5, targets=100, loss=1.0), "huge": a_result(10**6, 1.0, targets=10**6, loss=0.0)}

    evaluation = an_aggregate(1, results, bounds=SiteBounds(100))

    assert (evaluation.metrics["accuracy"], evaluation.loss) == (0.75, 0.5)
    assert (evaluation.sites["huge"].samples, evaluation.sites["huge"].targets) == (100, 100)


def test_one_site_of_three_reaches_no_target_and_makes_no_round_the_best() -> None:
    honest = {"a": 0.60, "b": 0.62}
    rounds = rounds_by_site([honest | {"c": 1.0}, {site: value + 0.03 for site, value in honest.items()} | {"c": 0.0}])
    goal = Target.model_validate({"metric": "accuracy", "value": 0.7})

    assert rounds[1].metrics["accuracy"] == pytest.approx(0.74), "the mean, as it is reported"
    assert not is_target_reached(goal, rounds[1])


@given(st.lists(st.tuples(st.floats(0.3, 0.9), st.integers(1, 1000)), min_size=3, max_size=9), st.floats(0, 1), st.integers(1, 10**6))
def test_one_site_moves_the_robust_mean_by_no_more_than_its_bounds(honest: list[tuple[float, int]], value: float, weight: int) -> None:
    values, weights = (tuple(column) for column in zip(*honest, strict=True))
    names_of = tuple(f"site-{at}" for at in range(len(honest) + 1))

    mean = robust_mean(SiteValues(names_of, (*values, value), (*weights, weight)))

    middle = median((*values, value))
    reach = 3 * max(1.4826 * median(abs(one - middle) for one in (*values, value)), 0.05 * middle)
    assert min(values) - reach <= mean <= max(values) + reach
    assert middle - reach <= mean <= middle + reach


@given(st.lists(st.tuples(st.floats(0, 1), st.integers(1, 1000)), min_size=1, max_size=2))
def test_of_one_or_two_sites_the_robust_mean_is_the_mean(sites: list[tuple[float, int]]) -> None:
    values, weights = (tuple(column) for column in zip(*sites, strict=True))
    mean = sum(value * weight for value, weight in sites) / sum(weights)

    assert robust_mean(SiteValues(("a", "b")[: len(sites)], values, weights)) == pytest.approx(mean)
