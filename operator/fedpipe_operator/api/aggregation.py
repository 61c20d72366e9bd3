"""`spec.aggregation` of a `FederatedFineTune`: how the updates of a round are checked and aggregated."""

from enum import StrEnum
from typing import Annotated, Final

from pydantic import Field, model_validator
from pydantic.alias_generators import to_camel

from fedpipe_operator.api.meta import ApiModel


class AggregationMethod(StrEnum):
    """How the heterogeneous adapters of a round are aggregated."""

    EXACT = "Exact"
    """The weighted mean of the products B·A, factorised again; the energy lost by truncating to the rank is reported."""
    FEDIT = "FedIT"
    """A and B are averaged separately (equal ranks only); inexact, for comparison."""
    ZERO_PAD = "ZeroPad"
    """A and B are padded with zeros to the largest rank and averaged separately; inexact, for comparison."""


class Normalization(StrEnum):
    """How the updates of sites that take different numbers of steps are weighted."""

    EFFECTIVE_STEPS = "EffectiveSteps"
    """By samples, each update divided by its effective steps (FedNova, with a limit): a site that takes more steps has no louder vote."""
    NONE = "None"
    """By samples alone (FedAvg), for comparison: what only slow sites know is lost where steps differ."""


class AggregationRule(StrEnum):
    """What is made of the updates of a round. All but Mean withstand sites that send anything, and need the method Exact."""

    MEAN = "Mean"
    """The weighted mean, of bounded weights and clipped increments: a malicious site moves it by its share at most."""
    MEDIAN = "Median"
    """The median of every coordinate of the products; sites count equally. Withstands less than half of the sites."""
    TRIMMED_MEAN = "TrimmedMean"
    """The mean of every coordinate without the `maliciousSites` largest and smallest values; sites count equally."""
    KRUM = "Krum"
    """The one update that lies closest to most others."""
    MULTI_KRUM = "MultiKrum"
    """The weighted mean of the updates that lie closest to most others: of n, the n − `maliciousSites` − 2 best."""


def least_updates(rule: AggregationRule, malicious: int) -> int:
    """The updates that the rule needs to withstand this many malicious sites."""
    needed = {
        AggregationRule.KRUM: 2 * malicious + 3,
        AggregationRule.MULTI_KRUM: 2 * malicious + 3,
        AggregationRule.TRIMMED_MEAN: 2 * malicious + 1,
    }
    return needed.get(rule, 1)


def mixed_updates(rule: AggregationRule, updates: int, malicious: int) -> int:
    """How many of so many updates the aggregate is made of: a rule may select some of them."""
    selected = {AggregationRule.KRUM: 1, AggregationRule.MULTI_KRUM: max(0, updates - malicious - 2)}
    return min(updates, selected.get(rule, updates))


class Clipping(StrEnum):
    """What happens to an increment of one weight that is longer than `clipMultiple` times what is usual in the round."""

    CLIP = "Clip"
    """It is shortened to that length."""
    REFUSE = "Refuse"
    """The site's update is refused: it costs the site the round."""
    NONE = "None"
    """Nothing."""


class OptimizerType(StrEnum):
    """What the server makes of a round's aggregated increment."""

    FEDAVG = "FedAvg"
    """The global adapter moves by it, times the server's learning rate."""
    FEDAVGM = "FedAvgM"
    """With momentum: it moves by the sum of all rounds' increments, of which each round keeps the share `momentum`."""
    FEDADAM = "FedAdam"
    """By a mean of the increments over that of their squares, one for each weight."""
    FEDADAMW = "FedAdamW"
    """FedAdam with decoupled weight decay, towards the base model."""
    FEDYOGI = "FedYogi"
    """FedAdam whose mean of squares falls no faster than it rises."""


ADAPTIVE: Final = frozenset({OptimizerType.FEDADAM, OptimizerType.FEDADAMW, OptimizerType.FEDYOGI})
"""The types that divide by a mean of squares."""
_TYPES_WITH: Final = {
    "momentum": frozenset({OptimizerType.FEDAVGM}),
    "beta1": ADAPTIVE,
    "beta2": ADAPTIVE,
    "tau": ADAPTIVE,
    "weight_decay": frozenset({OptimizerType.FEDADAMW}),
}
"""The types that read a field; the others refuse it."""


class ServerOptimizer(ApiModel):
    """The optimizer of the global adapter, whose gradient is a round's aggregated increment."""

    type: OptimizerType = OptimizerType.FEDAVG
    learning_rate: Annotated[float, Field(gt=0, le=100)] | None = None
    """Of the server. Left out: 1, for FedAvgM 1 − `momentum`, and 0.01 for FedAdam, FedAdamW and FedYogi."""
    momentum: Annotated[float, Field(ge=0, lt=1)] | None = None
    """Of FedAvgM. Left out: 0.5."""
    beta1: Annotated[float, Field(ge=0, lt=1)] | None = None
    """Of the mean of the increments, for FedAdam, FedAdamW and FedYogi. Left out: 0.9."""
    beta2: Annotated[float, Field(ge=0, lt=1)] | None = None
    """Of the mean of their squares, for these types. Left out: 0.99."""
    tau: Annotated[float, Field(gt=0, le=1)] | None = None
    """Added to the root of that mean, for these types: the smaller, the more adaptive. Left out: 0.001."""
    weight_decay: Annotated[float, Field(ge=0, le=1)] | None = None
    """Of FedAdamW: each round, the adapter loses this times the learning rate of itself. Left out: 0.01."""

    @model_validator(mode="after")
    def _refuse_fields_of_other_types(self) -> "ServerOptimizer":
        for field, types in _TYPES_WITH.items():
            if getattr(self, field) is not None and self.type not in types:
                names = ", ".join(one.value for one in OptimizerType if one in types)
                raise ValueError(f"{to_camel(field)} belongs to {names}: leave it out, or change the type")
        return self

    @property
    def is_plain(self) -> bool:
        """Whether the global adapter moves by the aggregated increment as it is."""
        return self.type is OptimizerType.FEDAVG and self.learning_rate in (None, 1)


FEDAVG: Final = ServerOptimizer()


class AggregationSpec(ApiModel):
    """How updates are checked and aggregated."""

    method: AggregationMethod = AggregationMethod.EXACT
    rule: AggregationRule = AggregationRule.MEAN
    malicious_sites: Annotated[int, Field(ge=1, le=499)] = 1
    """The number of malicious sites f that TrimmedMean, Krum and MultiKrum are to withstand; the other rules do not read it.
    TrimmedMean needs 2f + 1 updates, Krum and MultiKrum 2f + 3."""
    normalization: Normalization = Normalization.EFFECTIVE_STEPS
    max_site_weight: Annotated[float, Field(gt=0, le=1)] | None = None
    """The largest share of one site in the average, in that of each weight, and in each reported metric; what exceeds it goes to the others
    in proportion. Left out: 0.5 where three or more sites contribute, else no bound."""
    clipping: Clipping = Clipping.CLIP
    clip_multiple: Annotated[float, Field(ge=1, le=1000)] = 3.0
    """Of the median length per effective step over the sites: an increment above it is too long.
    Fewer than three updates have no such median."""
    optimizer: ServerOptimizer = FEDAVG
    max_norm: Annotated[float, Field(gt=0, le=1e9)] = 1e4
    """The gate refuses an update whose increment, over all weights and head tensors together, has a larger Frobenius norm."""

    @model_validator(mode="after")
    def _require_products_for_robust_rules(self) -> "AggregationSpec":
        if self.rule is not AggregationRule.MEAN and self.method is not AggregationMethod.EXACT:
            raise ValueError(
                f"rule {self.rule.value} works on the products B·A, which method {self.method.value} does not form: "
                "set method to Exact, or rule to Mean"
            )
        return self

    @property
    def least_updates(self) -> int:
        """The updates that the rule needs to withstand `malicious_sites`."""
        return least_updates(self.rule, self.malicious_sites)

    def mixed(self, updates: int) -> int:
        """How many of so many updates the aggregate is made of."""
        return mixed_updates(self.rule, updates, self.malicious_sites)
