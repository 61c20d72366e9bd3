"""The hyperparameters of a run that the spec leaves out, each with the reason for its value. What the spec says is obeyed. Pure.

The learning rate comes from a range test that each site makes with its profile. It is chosen once, before round 1, and
stands in the plan of every round; `spec.training` may change it between two rounds. From round to round it falls by a schedule. Every
mode uses the same rate.
"""

import math
import re
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from typing import Annotated, Final

from pydantic import Field

from fedpipe_operator import conversion
from fedpipe_operator.api import FineTuneSpec, LearningRateSchedule, PlanningMode, TrainingSpec, parse_duration
from fedpipe_operator.formatting import counted, excerpt, percent, whole_percent
from fedpipe_operator.planning.passes import passes
from fedpipe_operator.planning.request import MAX_PASSES
from fedpipe_operator.shares import counted_samples
from fedpipe_operator.sites import SiteProfile
from fedpipe_trainer.contract import Plan, RangeTest, RangeTestResult, Wire

LEARNING_RATES: Final = (3e-5, 1e-4, 3e-4, 1e-3, 3e-3, 1e-2, 3e-2)
"""The rates of the range test: steps of about √10, since quality changes little within a factor of 2."""
DEFAULT_LEARNING_RATE: Final = 2e-4
"""Where no site could test any."""
RANGE_TEST_STEPS: Final = 8
"""Optimiser steps at each rate."""
RANGE_TEST_SAMPLES: Final = 64
"""Validation samples at each site, at most."""
RANGE_TEST_SHARE: Final = 0.02
"""Of `rounds.deadline`, the longest time for the test: 36 s of the default 30 minutes."""
_LONGEST_TEST: Final = 86400.0
"""Seconds, whatever the deadline."""
LOWEST_SHARE: Final = 0.1
"""Of the learning rate: where the cosine ends."""
EQUAL_STEPS: Final = (PlanningMode.UNIFORM, PlanningMode.UNIFORM_WEAKEST)
"""Modes in which all sites take the same steps."""
FROM_SPEC: Final = "from the spec"
_QUORUM: Final = 0.5
"""A rate counts if the sites that judge it have at least this share of the samples."""
_NEARLY: Final = 0.9
"""With this share of the best rate's gain, a smaller rate is preferred."""
_NOISE: Final = 0.001
"""Relative changes of the loss that are no larger say nothing about a rate."""
_WORST: Final = 1.0
"""A site's word is at most that the loss doubles, or falls to 0: so no site decides alone, whatever it reports."""
_SMALL: Final = 0.01
_SHOWN: Final = 256
"""Characters of a value."""
_PROBLEM: Final = 512
"""Characters of a site's sentence."""


class Hyperparameter(Wire):
    """A hyperparameter of the run, and why it has its value."""

    name: Annotated[str, Field(max_length=64)]
    """The field of the spec that sets it."""
    value: Annotated[str, Field(max_length=_SHOWN)]
    reason: Annotated[str, Field(max_length=1024)]


@dataclass(frozen=True)
class LearningRate:
    """The learning rate of a round, and why."""

    value: float
    reason: str


def range_test(spec: FineTuneSpec) -> RangeTest | None:
    """The test that each site makes with its profile; None where the spec has a learning rate.

    It uses the hyperparameters and the batch of the training, but no warm-up, which would outlast it.
    """
    if spec.training.learning_rate is not None:
        return None
    hyper = conversion.hyperparameters(spec.training, DEFAULT_LEARNING_RATE)
    return RangeTest(
        learning_rates=LEARNING_RATES,
        steps=RANGE_TEST_STEPS,
        batch_size=max(spec.planning.batch_sizes),
        validation_samples=RANGE_TEST_SAMPLES,
        seconds=min(_LONGEST_TEST, RANGE_TEST_SHARE * parse_duration(spec.rounds.deadline)),
        hyperparameters=hyper.model_copy(update={"warmup_steps": 0}),
        scaling=conversion.scaling(spec.training.scaling),
        alpha=spec.training.alpha,
    )


def choose_learning_rate(sites: Mapping[str, RangeTestResult | None], steps: int) -> LearningRate:
    """The smallest rate that is about as good as the best by the relative change of the sites' losses, lowered for longer rounds.

    A short test flatters large rates: of those that are nearly equal after few steps the larger ones diverge first. How near is a share
    of the best one's gain, because eight steps gain 12 % in one task, and less than 1 % in another. And the best constant
    step size of stochastic gradient descent over T steps falls as 1/√T (Nemirovski et al., SIAM J. Optim. 19(4), 2009), so it is
    multiplied by √(steps of the test / T), T being the steps of a round, each of which starts a new optimiser from the sites' mean.

    Args:
        sites: the test of each; one without a test, or whose test failed, has no say.
        steps: the most optimiser steps that a site takes in a round.
    """
    tests = {name: test for name, test in sorted(sites.items()) if test is not None and test.samples and test.rates}
    changes = combined_changes(tests)
    if len(changes) < 2:  # noqa: PLR2004 - a single rate is compared with nothing
        return LearningRate(DEFAULT_LEARNING_RATE, f"the default: {_why_not_tested(sites)}")
    tested = f"after {RANGE_TEST_STEPS} steps at {len(tests)} of {len(sites)} sites"
    found = (_best if min(changes.values()) < -_NOISE else _without_gain)(changes, tested)
    if steps <= RANGE_TEST_STEPS or found.value not in changes:
        return found
    value = float(f"{found.value * math.sqrt(RANGE_TEST_STEPS / steps):.1g}")
    return LearningRate(value, f"{found.reason}; times √({RANGE_TEST_STEPS}/{steps}), since a round has up to {steps} steps")


def _best(changes: Mapping[float, float], tested: str) -> LearningRate:
    """Of rates at which the loss fell, the smallest with nearly the gain of the best."""
    lowest = min(changes.values())
    rate = min(rate for rate, change in changes.items() if change <= _NEARLY * lowest)
    choice = f"the best of {len(changes)} rates"
    if changes[rate] > lowest:
        choice = f"the smallest rate with at least {whole_percent(_NEARLY)} of the best gain (of {len(changes)} rates)"
    others = _told({other: change for other, change in changes.items() if other != rate})
    return LearningRate(rate, f"{rate:g} is {choice}: validation loss {_percent(changes[rate])} {tested} ({others})")


def _without_gain(changes: Mapping[float, float], tested: str) -> LearningRate:
    """Where no rate lowered the loss: the default, if none as large raised it; else the largest that did not, or the least harmful."""
    harmless = [rate for rate, change in changes.items() if change <= _NOISE]
    advice = "check the data, or write training.learningRate"
    if min(changes.values()) >= _WORST:
        rate, why = min(changes), f"validation loss diverged at all of {len(changes)} rates {tested}: the smallest is taken"
    elif harmless:
        lowered = f"none of {len(changes)} rates lowered the validation loss by more than {percent(_NOISE)} {tested} ({_told(changes)})"
        rate = min(DEFAULT_LEARNING_RATE, max(harmless))
        why = f"{lowered}: {'the largest that did not raise it by more either' if rate in changes else 'the default'} is taken"
    else:
        rate = min(changes, key=lambda rate: (changes[rate], rate))
        why = f"none of {len(changes)} rates lowered the validation loss {tested} ({_told(changes)}): the one that raised it least is taken"
    return LearningRate(rate, f"{rate:g}: {why}; {advice}")


def _told(changes: Mapping[float, float]) -> str:
    return ", ".join(f"{rate:g}: {_percent(changes[rate])}" for rate in sorted(changes))


def rate_of(planned: float | None, training: TrainingSpec) -> float:
    """The learning rate of a round: its plan's; of a plan that an earlier version of the operator made the spec's, or the default."""
    return planned or training.learning_rate or DEFAULT_LEARNING_RATE


def share_at(schedule: LearningRateSchedule | None, done: float) -> float:
    """The share of the learning rate that is used after this share of a run, both dimensionless; None: the default.

    With a constant rate, sites whose data differ hold the global adapter away from what is best for all of them, by a distance that grows
    with the rate and with the steps of a round (Li et al., arXiv 1907.02189, theorem 4). A large rate at first makes it fast, a small one
    at last makes it good.
    """
    if schedule is LearningRateSchedule.CONSTANT:
        return 1.0
    return LOWEST_SHARE + (1 - LOWEST_SHARE) * (1 + math.cos(math.pi * done)) / 2


def learning_rate_share(spec: FineTuneSpec, round_: int) -> float:
    """The share of the learning rate that the trainings of this round use, from 1: all of it in round 1."""
    return share_at(spec.training.learning_rate_schedule, min(1.0, (round_ - 1) / spec.rounds.count))


def combined_changes(tests: Mapping[str, RangeTestResult]) -> dict[float, float]:
    """By learning rate: the mean relative change of the loss, loss / loss before − 1, weighted by samples.

    A site counts with the samples that it was asked for at most, and of three or more with no more than all others have together. A rate
    that too few judge is left out. A site judges the rates that it tried, and those beyond one at which its loss was worse than at the
    rate before: it did not try them for that, and counts with the loss there, the least that they would have. So does one at which its
    loss diverged for all larger ones.
    """
    samples_of = counted_samples({name: min(test.samples, RANGE_TEST_SAMPLES) for name, test in tests.items()})
    total = sum(samples_of.values())
    judged: dict[float, float] = {}
    tried = {one.learning_rate for test in tests.values() for one in test.rates}
    for rate in sorted(tried & set(LEARNING_RATES)):
        words = [(samples_of[name], change) for name, test in tests.items() if (change := _change(test, rate)) is not None]
        weight = sum(samples for samples, _ in words)
        if weight >= _QUORUM * total:
            judged[rate] = sum(samples * change for samples, change in words) / weight
    return judged


def _change(test: RangeTestResult, rate: float) -> float | None:
    """The relative change of the site's loss at this rate, within ±1; None if the site has no word on it."""
    before = test.loss_before or 0.0
    changes = {one.learning_rate: _WORST if one.loss is None or not before else one.loss / before - 1 for one in test.rates}
    nearest, *others = sorted(changes, key=lambda one: abs(one - rate))
    got_worse = bool(others) and changes[nearest] > changes[others[0]]
    diverged_below = nearest < rate and changes[nearest] >= _WORST
    if rate not in changes and not got_worse and not diverged_below:
        return None
    return max(-_WORST, min(_WORST, changes[nearest]))


def _why_not_tested(sites: Mapping[str, RangeTestResult | None]) -> str:
    problems = [f"{name}: {excerpt(test.problem, _PROBLEM)}" for name, test in sorted(sites.items()) if test is not None and test.problem]
    return (
        f"too few sites could compare rates; {problems[0]}"
        if problems
        else "no two rates could be tested at enough of the sites; write training.learningRate"
    )


def _percent(change: float) -> str:
    """A relative change of the loss, with two decimals if it is below 1 %, which may be all that eight steps bring."""
    return "diverged" if change >= _WORST else f"{100 * change:+z.{1 if abs(change) >= _SMALL else 2}f} %"


def hyperparameters(
    spec: FineTuneSpec, sites: Mapping[str, SiteProfile], plans: Mapping[str, Plan], rate: LearningRate
) -> tuple[Hyperparameter, ...]:
    """Every hyperparameter that the product chooses if the spec leaves it out, and the spec's proximal term, in its order."""
    return (
        _target_modules(spec, sites),
        Hyperparameter(name="training.learningRate", value=f"{rate.value:g}", reason=rate.reason),
        _schedule(spec),
        *_proximal(spec),
        _scaling(spec),
        _epochs(spec, sites, plans),
    )


def _target_modules(spec: FineTuneSpec, sites: Mapping[str, SiteProfile]) -> Hyperparameter:
    name, given = "planning.targetModules", spec.planning.target_modules
    if given:
        return Hyperparameter(name=name, value=", ".join(given)[:_SHOWN], reason=FROM_SPEC)
    base = sites[min(sites)].base
    # What comes after the layer's number: the last part alone, such as `dense`, may be that of other modules too.
    modules = dict.fromkeys(re.split(r"\.\d+\.", weight.name)[-1] for weight in base.weights)
    attention = sum(weight.d_in + weight.d_out for weight in base.weights)
    mlp = 2 * base.layers * (base.hidden_size + base.intermediate_size)
    reason = (
        f"the attention projections, {len(base.weights)} weights in {base.layers} layers: "
        f"with the MLP's, adapters of the same rank would be at least {1 + mlp / max(1, attention):.2g} times as large"
    )
    return Hyperparameter(name=name, value=", ".join(modules)[:_SHOWN], reason=reason)


def _schedule(spec: FineTuneSpec) -> Hyperparameter:
    given, last = spec.training.learning_rate_schedule, spec.rounds.count
    fall = f"from round 1 to round {last} the learning rate falls to {percent(learning_rate_share(spec, last))} of it"
    reason = f"{fall}: fast at first, and at last near to what is best for sites whose data differ (arXiv 1907.02189)"
    if last == 1:
        fall = reason = "a single round has all of the learning rate"
    if given:
        reason = FROM_SPEC if given is LearningRateSchedule.CONSTANT else f"{FROM_SPEC}: {fall}"
    return Hyperparameter(name="training.learningRateSchedule", value=(given or LearningRateSchedule.COSINE).value, reason=reason)


def _proximal(spec: FineTuneSpec) -> tuple[Hyperparameter, ...]:
    """None without the term, which nobody chooses but the spec."""
    mu = spec.training.proximal_mu
    return (Hyperparameter(name="training.proximalMu", value=f"{mu:g}", reason=FROM_SPEC),) if mu else ()


def _scaling(spec: FineTuneSpec) -> Hyperparameter:
    given = spec.training.scaling
    reason = "alpha / √rank: the same learning rate suits adapters of every rank, and ranks differ by site and weight (arXiv 2312.03732)"
    return Hyperparameter(name="training.scaling", value=conversion.scaling(given).value, reason=FROM_SPEC if given else reason)


def _epochs(spec: FineTuneSpec, sites: Mapping[str, SiteProfile], plans: Mapping[str, Plan]) -> Hyperparameter:
    """Passes over a site's data in a round: those that the plans make, from the fewest to the most, which may be fewer than are allowed."""
    made = sorted(passes(sites[name].train_samples, plan.steps, plan.batch_size) for name, plan in plans.items())
    value = " to ".join(dict.fromkeys(f"{one:.2g}" for one in (made[0], made[-1]))) if made else "0"
    return Hyperparameter(name="training.epochs", value=value, reason=_why_these_passes(spec, {plan.steps for plan in plans.values()}))


def _why_these_passes(spec: FineTuneSpec, steps: Collection[int]) -> str:
    """The reason for the passes that these steps of the sites make."""
    epochs, most = spec.training.epochs, spec.training.max_steps
    capped = "" if most is None else f", and at most {counted(most, 'step')} (training.maxSteps)"
    if epochs is not None:
        return f"passes a round that the plans make; the spec allows {epochs:g} (training.epochs){capped}"
    if spec.planning.mode is PlanningMode.MANUAL:
        return f"passes a round that the steps of planning.plans make{capped}"
    if most is not None and set(steps) == {most}:
        return f"passes a round that {counted(most, 'step')} make{'s' if most == 1 else ''}, as many as training.maxSteps allows"
    if spec.planning.mode in EQUAL_STEPS:
        return f"passes a round: equal steps at all sites, {MAX_PASSES:g} passes on average if they fit into it{capped}: see the plans"
    return f"passes a round: the steps that fit into it at each site, up to {MAX_PASSES:g} passes{capped}: see the plans"
