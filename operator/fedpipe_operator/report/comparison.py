"""The local-only baselines: each site trains by itself with the same budget, to compare with the base and the federated model.

A baseline is a run of one round in which one site trains, for as many steps as it took in all the rounds, and every site
evaluates. It uses the same `decide`, plans, trainers and aggregation as the run itself (whose aggregation of a single
update is the identity), in a folder of the run's own store. It has no proximal term: with whom would the site have to agree?
"""

from collections.abc import Mapping

from fedpipe_operator import names
from fedpipe_operator.api import FederatedFineTune, parse_duration
from fedpipe_operator.api.aggregation import AggregationRule
from fedpipe_operator.api.finetune import ExportSpec
from fedpipe_operator.rounds import Run
from fedpipe_operator.rounds.records import Comparison, RoundCommit, RoundEvaluation, RoundPlan


def rounds_trained(site: str, commits: Mapping[int, RoundCommit]) -> int:
    """In how many of the run's rounds this site's update was aggregated."""
    return sum(any(update.site == site for update in commit.contributions) for commit in commits.values())


def local_only_run(run: Run, site: str, rounds: int) -> Run:
    """The baseline run of `site`: one round, with the deadlines of `rounds` rounds added up."""
    spec = run.spec
    deadline = f"{int(parse_duration(spec.rounds.deadline) * rounds)}s"
    one_round = spec.rounds.model_copy(update={"count": 1, "deadline": deadline, "target": None, "patience": None})
    metadata = run.resource.metadata.model_copy(update={"name": names.bounded(f"{run.name}-local-only-{site}")})
    training = spec.training.model_copy(update={"proximal_mu": 0.0})
    child_spec = spec.model_copy(update={"rounds": one_round, "training": training, "export": ExportSpec(adapter=False, merged=False)})
    return Run(FederatedFineTune(metadata=metadata, spec=child_spec), run.sites, baseline_of=run.name, private_claims=run.private_claims)


def local_only_plan(first: RoundPlan, site: str, rounds: int) -> RoundPlan:
    """The plan of the baseline run: the site's plan with the steps of all its rounds, and the run's evaluators."""
    plan = first.plans[site]
    longer = plan.model_copy(update={"steps": plan.steps * rounds})
    # A rule that needs many updates cannot have them of one site, whose only update is the mean.
    alone = {"selected": (site,), "needed": 1, "min_sites": {}, "rule": AggregationRule.MEAN}
    training = first.training and first.training.model_copy(update={"proximal_mu": 0.0})
    return first.model_copy(update={"plans": {**first.plans, site: longer}, "training": training} | alone)


def make_comparison(*, base: RoundEvaluation, federated: RoundEvaluation, local_only: Mapping[str, RoundEvaluation]) -> Comparison:
    """Base, baselines in order of site, and federated model; all evaluated on the validation data of all sites together."""
    return Comparison(base=base, local_only=dict(sorted(local_only.items())), federated=federated)
