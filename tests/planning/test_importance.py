"""Which weights matter: the sites' scores combined, checked, refreshed, and the share that explores."""

import re
from collections.abc import Mapping, Sequence
from typing import Final

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from site_profiles import a_site

from fedpipe_operator.planning.importance import combine, explore, rank_correlation
from fedpipe_operator.sites import SiteProfile
from fedpipe_trainer.contract import Importance, ImportanceMethod, WeightShape

NAMES: Final = tuple(f"w{index}" for index in range(8))
WEIGHTS: Final = tuple(WeightShape(name=name, d_out=8, d_in=8) for name in NAMES)
RISING: Final = (1.0, 2.0, 3.0, 4.0, 5.0, 6.0, 7.0, 8.0)
FALLING: Final = RISING[::-1]


def scored(name: str, first: Sequence[float], second: Sequence[float] | None = None, *, samples: int = 100) -> SiteProfile:
    """A site with scores on the two halves of its batches; without `second` both halves agree."""
    importance = Importance(
        method=ImportanceMethod.GRADIENT,
        samples=samples,
        first_half=dict(zip(NAMES, first, strict=True)),
        second_half=dict(zip(NAMES, second or first, strict=True)),
    )
    return a_site(name, importance=importance, train_samples=samples)


NO_GRADIENT: Final = "every score is 0, so that no gradient reaches the weights: check that the base computes in 16 or 32 bits"
UNLIKE_HALVES: Final = "the two halves of a site's batches disagree on the order of the weights, correlation below 0.8"


def fleet(*sites: SiteProfile) -> dict[str, SiteProfile]:
    return {site.name: site for site in sites}


def values(scores: Mapping[str, float]) -> list[float]:
    return [scores[name] for name in NAMES]


def test_scores_are_averaged_over_the_sites_by_samples_and_have_a_mean_of_1() -> None:
    steep = tuple(value**2 for value in RISING)

    combined = combine(fleet(scored("a", RISING, samples=300), scored("b", steep, samples=100)), WEIGHTS)

    expected = 0.75 * np.array(RISING) / np.mean(RISING) + 0.25 * np.array(steep) / np.mean(steep)
    assert values(combined.scores) == pytest.approx(list(expected))
    assert np.mean(values(combined.scores)) == pytest.approx(1)
    assert combined.note == "importance by gradient scores of 2 of 2 sites"
    assert not combined.is_uniform


def test_the_mean_over_the_sites_has_the_same_digits_in_every_order_of_adding() -> None:
    """Processors add in different orders, and a plan is the same on all of them."""
    random = np.random.default_rng(0)
    measured = [(np.sort(random.lognormal(size=8)).tolist(), int(random.integers(10, 999))) for _ in range(40)]

    def combined(order: Sequence[int]) -> Mapping[str, float]:
        sites = [scored(f"{name:02}", measured[at][0], samples=measured[at][1]) for name, at in enumerate(order)]
        return combine(fleet(*sites), WEIGHTS).scores

    assert combined(range(40)) == combined(range(39, -1, -1))


def test_the_unit_of_a_site_s_scores_does_not_matter() -> None:
    tiny = tuple(1e-12 * value for value in RISING)

    assert values(combine(fleet(scored("a", tiny)), WEIGHTS).scores) == pytest.approx(
        values(combine(fleet(scored("a", RISING)), WEIGHTS).scores)
    )


def test_a_site_whose_two_halves_disagree_is_left_out() -> None:
    combined = combine(fleet(scored("a", RISING), scored("b", RISING, FALLING)), WEIGHTS)

    assert not combined.is_uniform
    assert combined.scores == combine(fleet(scored("a", RISING)), WEIGHTS).scores
    assert combined.note == f"importance by gradient scores of 1 of 2 sites; without b ({UNLIKE_HALVES})"


def test_scores_that_are_all_alike_are_told_as_that() -> None:
    alike = fleet(scored("a", [0.5] * 8), scored("b", [7.0] * 8))
    measured = Importance(method=ImportanceMethod.GRADIENT, samples=8, first_half={"w0": 1.0}, second_half={"w0": 1.1})
    single = a_site("a", importance=measured)

    assert combine(alike, WEIGHTS).note.endswith("a, b (all weights have the same score)")
    assert combine({"a": single}, WEIGHTS[:1]).note.endswith("a (there is a single weight to score)")


def test_the_sites_whose_scores_do_not_count_are_named_with_the_reason_of_each() -> None:
    frozen = Importance(method=ImportanceMethod.GRADIENT, samples=0, problem="the base is frozen: thaw it")
    left_out = (
        scored("b", RISING, FALLING, samples=9),
        a_site("c", importance=frozen, train_samples=9),
        scored("e", RISING, FALLING, samples=9),
    )

    combined = combine(fleet(scored("a", RISING), *left_out), WEIGHTS)

    told = f"b, e ({UNLIKE_HALVES}); c (the base is frozen: thaw it)"
    assert combined.note == f"importance by gradient scores of 1 of 4 sites; without {told}"
    assert (
        combine(fleet(*left_out), WEIGHTS).note == f"every weight counts as equally important: no site has scores that are stable: {told}"
    )


def test_of_many_sites_whose_scores_do_not_count_three_are_named() -> None:
    sites = fleet(*(scored(f"site-{index}", RISING, FALLING) for index in range(8)))

    note = combine(sites, WEIGHTS).note

    assert note.endswith(f"stable: site-0, site-1, site-2 ({UNLIKE_HALVES}), and 5 more")


def test_a_long_sentence_of_a_site_is_cut_in_the_note() -> None:
    wordy = Importance(method=ImportanceMethod.GRADIENT, samples=0, problem="x" * 1000)

    assert len(combine(fleet(a_site("a", importance=wordy)), WEIGHTS).note) < 300


def test_a_few_samples_do_not_decide_for_the_fleet() -> None:
    combined = combine(fleet(scored("a", RISING, samples=40), scored("b", RISING, FALLING, samples=60)), WEIGHTS)

    assert combined.is_uniform
    few = "only sites with 40 % of the samples have stable scores, less than 50 %"
    assert combined.note == f"every weight counts as equally important: {few}; without b ({UNLIKE_HALVES})"


def test_scores_that_are_unstable_everywhere_count_for_nothing() -> None:
    combined = combine(fleet(scored("a", RISING, FALLING)), WEIGHTS)

    assert combined.is_uniform
    assert values(combined.scores) == [1.0] * 8
    assert combined.note == f"every weight counts as equally important: no site has scores that are stable: a ({UNLIKE_HALVES})"


def test_sites_that_disagree_on_the_order_are_not_averaged() -> None:
    combined = combine(fleet(scored("a", RISING), scored("b", FALLING)), WEIGHTS)

    assert combined.is_uniform
    told = "the sites disagree on the order of the weights (correlation -1.00, below 0.6)"
    assert (
        combined.note == f"every weight counts as equally important: {told}: compare the data of a, b (correlation -1.00 with the others)"
    )


@pytest.mark.parametrize("good", [1, 2, 4])
@pytest.mark.parametrize("odd", [FALLING, (5.0, 2.0, 8.0, 1.0, 3.0, 7.0, 4.0, 6.0)], ids=["reversed", "random"])
def test_a_site_of_two_samples_does_not_decide_whether_the_sites_agree(good: int, odd: Sequence[float]) -> None:
    sites = fleet(*(scored(f"good-{index}", RISING, samples=5000) for index in range(good)), scored("odd", odd, samples=2))

    combined = combine(sites, WEIGHTS)

    assert not combined.is_uniform
    assert values(combined.scores) == pytest.approx(values(combine(fleet(scored("a", RISING)), WEIGHTS).scores), rel=0.01)


def test_sites_that_disagree_are_named_those_with_most_samples_first() -> None:
    sites = [scored(f"good-{index}", RISING, samples=100) for index in range(4)]
    odd = (scored("few", FALLING, samples=50), scored("many", FALLING, samples=120))

    note = combine(fleet(*sites, *odd), WEIGHTS).note

    assert note.endswith(": compare the data of many, few (correlation -1.00 with the others)")


@given(st.lists(st.integers(1, 10_000), min_size=2, max_size=5), st.data())
def test_a_figure_that_is_told_to_be_below_a_bound_is_below_it_as_printed(samples: Sequence[int], data: st.DataObject) -> None:
    orders = [data.draw(st.permutations(RISING)) for _ in samples]
    halves = [FALLING if data.draw(st.booleans()) else order for order in orders]
    sites = [
        scored(f"site-{index}", order, half, samples=count)
        for index, (order, half, count) in enumerate(zip(orders, halves, samples, strict=True))
    ]

    note = combine(fleet(*sites), WEIGHTS).note

    for figure, bound in re.findall(r"correlation (-?[\d.]+), below ([\d.]+)", note) + re.findall(
        r"with (\d+) %.* less than (\d+) %", note
    ):
        assert float(figure) < float(bound), note


@pytest.mark.parametrize(
    ("sites", "why"),
    [
        ((a_site("a"),), "no site measured scores"),
        ((a_site("a", importance=Importance(method=ImportanceMethod.NONE, samples=0)),), "planning.importance is None"),
        (
            (a_site("a", importance=Importance(method=ImportanceMethod.GRADIENT, samples=0, problem="the base is frozen: thaw it")),),
            "no site has scores that are stable: a (the base is frozen: thaw it)",
        ),
        (
            (scored("a", (0.0,) * 8),),
            f"no site has scores that are stable: a ({NO_GRADIENT})",
        ),
    ],
)
def test_without_scores_every_weight_counts_the_same_and_the_note_says_why(sites: tuple[SiteProfile, ...], why: str) -> None:
    combined = combine(fleet(*sites), WEIGHTS)

    assert combined.is_uniform
    assert set(combined.scores.values()) == {1.0}
    assert combined.note == f"every weight counts as equally important: {why}"


def test_a_weight_that_no_site_scored_counts_a_little() -> None:
    combined = combine(fleet(scored("a", (0.0, *RISING[1:]))), WEIGHTS)

    assert 0 < combined.scores["w0"] < 0.02
    assert np.mean(values(combined.scores)) == pytest.approx(1)


def test_what_the_last_round_learned_counts_for_half() -> None:
    learned = dict.fromkeys(NAMES, 0.0) | {"w0": 3.0, "w7": 1.0}
    before = combine(fleet(scored("a", RISING)), WEIGHTS).scores

    combined = combine(fleet(scored("a", RISING)), WEIGHTS, learned=learned)

    trained = before["w0"] + before["w7"]
    assert combined.scores["w0"] == pytest.approx((before["w0"] + 0.75 * trained) / 2)
    assert combined.scores["w7"] == pytest.approx((before["w7"] + 0.25 * trained) / 2)
    assert combined.scores["w3"] == pytest.approx(before["w3"])
    assert np.mean(values(combined.scores)) == pytest.approx(1)
    assert combined.note.endswith("and what the last round changed")


def test_a_weight_is_not_important_for_its_size_or_for_the_rank_that_it_was_given() -> None:
    """Both weights change by the same a element; one has sixteen times the elements, the other had sixteen times the rank."""
    weights = tuple(WeightShape(name=name, d_out=32 if name == "w0" else 8, d_in=32 if name == "w0" else 8) for name in NAMES)
    learned, ranks = {"w0": 4.0, "w1": 1.0, "w2": 2.0}, {"w0": 2.0, "w1": 2.0, "w2": 32.0}

    combined = combine(fleet(scored("a", (1.0,) * 3 + RISING[3:])), weights, learned=learned, ranks=ranks)

    assert combined.scores["w0"] == pytest.approx(combined.scores["w1"])
    assert combined.scores["w0"] == pytest.approx(combined.scores["w2"])


def test_a_round_that_learned_nothing_changes_no_score() -> None:
    assert combine(fleet(scored("a", RISING)), WEIGHTS, learned=dict.fromkeys(NAMES, 0.0)) == combine(fleet(scored("a", RISING)), WEIGHTS)


@given(st.lists(st.floats(0.01, 100), min_size=1, max_size=30), st.floats(0.01, 0.5))
def test_exploration_reaches_every_weight_within_four_rounds_and_keeps_the_mean(scores: list[float], share: float) -> None:
    named = {f"w{index}": score / float(np.mean(scores)) for index, score in enumerate(scores)}

    rounds = [explore(named, share, round_) for round_ in range(1, 5)]

    assert all(any(explored[name] > (1 - share) * score + 1e-9 for explored in rounds) for name, score in named.items())
    assert [np.mean(list(explored.values())) for explored in rounds] == pytest.approx([1] * 4)


def test_without_exploration_the_scores_are_as_they_are() -> None:
    assert explore({"a": 0.5, "b": 1.5}, 0.0, 1) == {"a": 0.5, "b": 1.5}


def test_the_rank_correlation_is_that_of_the_order_alone() -> None:
    rising = np.array(RISING)

    assert rank_correlation(rising, rising**3) == pytest.approx(1)
    assert rank_correlation(rising, -np.exp(rising)) == pytest.approx(-1)
    assert rank_correlation(rising, np.ones(8)) == 0
    # Ties share their mean rank: ranks (1.5, 1.5, 3, 4) against (1, 2, 3, 4).
    assert rank_correlation(np.array([1.0, 1, 2, 3]), np.array([1.0, 2, 3, 4])) == pytest.approx(0.9487, abs=1e-4)
