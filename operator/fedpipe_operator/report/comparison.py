"""What the federation was worth: each site alone with the same budget, beside the federated model and the base.

A site alone is a run of one round in which only that site trains, for as many steps as it took in all the rounds,
and every site evaluates. So it goes through the same `decide`, plans, trainers and aggregation as the run itself
(whose aggregation of a single update is the identity), in a folder of the run's own store.
"""

from collections.abc import Mapping

from fedpipe_operator import names
from fedpipe_operator.api import FederatedFineTune, seconds
from fedpipe_operator.api.finetune import ExportSpec
from fedpipe_operator.rounds import Run
from fedpipe_operator.rounds.records import Comparison, RoundCommit, RoundEvaluation, RoundPlan


def rounds_trained(site: str, commits: Mapping[int, RoundCommit]) -> int:
    """How many of the run's rounds this site's updates went into."""
    return sum(any(one.site == site for one in commit.contributions) for commit in commits.values())


def alone(run: Run, site: str, rounds: int) -> Run:
    """The run of one round in which only `site` trains, with the time of `rounds` rounds."""
    spec = run.spec
    deadline = f"{int(seconds(spec.rounds.deadline) * rounds)}s"
    one_round = spec.rounds.model_copy(update={"count": 1, "deadline": deadline, "target": None, "patience": None})
    metadata = run.resource.metadata.model_copy(update={"name": names.bounded(f"{run.name}-alone-{site}")})
    child_spec = spec.model_copy(update={"rounds": one_round, "export": ExportSpec(adapter=False, merged=False)})
    return Run(FederatedFineTune(metadata=metadata, spec=child_spec), run.sites)


def alone_plan(first: RoundPlan, site: str, rounds: int) -> RoundPlan:
    """The plan of that run: the site's own plan with all its rounds' steps, and the run's evaluators."""
    plan = first.plans[site]
    longer = plan.model_copy(update={"steps": plan.steps * rounds})
    return first.model_copy(update={"plans": {**first.plans, site: longer}, "selected": (site,), "needed": 1})


def compared(*, base: RoundEvaluation, federated: RoundEvaluation, alone_results: Mapping[str, RoundEvaluation]) -> Comparison:
    """The three side by side, all measured on the union of the sites' validation data."""
    return Comparison(base=base, alone=dict(sorted(alone_results.items())), federated=federated)
