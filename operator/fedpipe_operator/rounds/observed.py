"""The input of `decide`: a run, and what was observed of it. Values only."""

from collections.abc import Mapping
from dataclasses import dataclass, field

from fedpipe_operator import names
from fedpipe_operator.admission import AdmittedDryExport, AdmittedEvaluation, AdmittedExport, AdmittedProfile, AdmittedUpdate, Refused
from fedpipe_operator.api import EdgeSite, FederatedFineTune, FineTuneSpec, StoreSpec, StoreStatus
from fedpipe_operator.backend import Job, JobStatus, TaskKind
from fedpipe_operator.errors import UserError
from fedpipe_operator.planning import RunFacts
from fedpipe_operator.rounds.conditions import Observation
from fedpipe_operator.rounds.records import (
    Contribution,
    ExpiredProfiles,
    OutOfReach,
    RoundCommit,
    RoundEvaluation,
    RoundPlan,
    SiteValues,
    Verdict,
)
from fedpipe_trainer.contract import Artifact, RunRef


@dataclass(frozen=True)
class Run:
    """A run and the sites that its selector matches, sorted by name."""

    resource: FederatedFineTune
    sites: tuple[EdgeSite, ...]
    baseline_of: str = ""
    """The name of the run that this one compares with a site trained alone; empty for a run of several sites."""
    private_claims: frozenset[str] = frozenset()
    """Claims of the namespace that hold the data or the cache of a site, of those too that the run does not select."""
    stored_at: StoreStatus | None = None
    """For the status; None where a folder of this machine is the store."""

    @property
    def name(self) -> str:
        """The run's name."""
        return self.resource.metadata.name

    @property
    def spec(self) -> FineTuneSpec:
        """The run's spec."""
        return self.resource.spec

    @property
    def store(self) -> StoreSpec:
        """The run's store.

        Raises:
            UserError: `StoreMissing`, the spec has none. On a cluster, the operator's default store was added to it, if there is one.
        """
        if self.spec.store is None:
            advice = "add it, or have the operator's administrator set defaultStore"
            raise UserError("StoreMissing", f"spec.store is not set, and the operator has no default store: {advice}")
        return self.spec.store

    @property
    def ref(self) -> RunRef:
        """The run's identity, as tasks and results carry it."""
        meta = self.resource.metadata
        return RunRef(namespace=meta.namespace, name=meta.name, uid=self.resource.results_uid)

    @property
    def prefix(self) -> str:
        """Where all of the run's objects are in its bucket."""
        return names.run_prefix(self.store.prefix, self.ref.namespace, self.ref.name, self.ref.uid)


@dataclass(frozen=True)
class PlanSummary:
    """What is needed of a round's plan after the round."""

    round: int
    started_at: float
    fingerprint: str
    model_commit: str | None
    revision: str
    labels: tuple[str, ...]
    selected: tuple[str, ...]
    needed: int
    excluded: tuple[str, ...]
    facts: RunFacts | None
    """What round 1 fixed for all later rounds; None for the plans of later rounds."""


@dataclass(frozen=True)
class CommitSummary:
    """What is needed of a round's commit after the round; the figures of each weight stay in the store."""

    round: int
    adapter: Artifact
    contributions: tuple[Contribution, ...]
    refused: Mapping[str, Verdict]
    absent: Mapping[str, str]
    out_of_memory: Mapping[str, int]
    """See `RoundCommit.out_of_memory` and `too_large`; 0 where the pass is not known."""
    late: tuple[str, ...]
    truncated_energy: float
    """The largest of any weight."""
    finished_at: float
    bytes_read: int
    seconds: float = 0.0
    """Of the aggregation."""
    download: Artifact | None = None
    """See `RoundCommit.download`."""

    @property
    def read_by_sites(self) -> Artifact:
        """The global adapter as the sites read it."""
        return self.download or self.adapter


@dataclass(frozen=True)
class EvaluationSummary:
    """What is needed of a round's federated evaluation; the rest of each site's result stays in the store."""

    round: int
    loss: float | None
    metrics: Mapping[str, float]
    sites: tuple[str, ...]
    """Those that evaluated, sorted."""
    missing: Mapping[str, str] = field(default_factory=dict)
    needed: int = 0
    late: tuple[str, ...] = ()
    """This, and the two above: see `RoundEvaluation`."""
    metric: str = "loss"
    """The run's when this was summarised: an edit of `rounds.target` may have changed it since."""
    site_values: Mapping[str, SiteValues] = field(default_factory=dict)
    """What each site measured of the loss and of this metric: it makes rounds comparable that other sites evaluated
    (`evaluation.held_means`), and tells whether enough did."""

    def by_site(self, metric: str) -> SiteValues:
        """What each site measured of this metric."""
        return self.site_values.get(metric, SiteValues())


def summarize_plan(plan: RoundPlan) -> PlanSummary:
    """The summary of a plan."""
    facts = RunFacts(
        labels=plan.labels, head=plan.head, weights=plan.weights, fingerprint=plan.fingerprint, commit=plan.model_commit, wrong_base={}
    )
    return PlanSummary(
        round=plan.round,
        started_at=plan.started_at,
        fingerprint=plan.fingerprint,
        model_commit=plan.model_commit,
        revision=plan.revision,
        labels=plan.labels,
        selected=plan.selected,
        needed=plan.needed,
        excluded=tuple(plan.excluded),
        facts=facts if plan.round == 1 else None,
    )


def summarize_commit(commit: RoundCommit) -> CommitSummary:
    """The summary of a commit."""
    return CommitSummary(
        round=commit.round,
        adapter=commit.adapter,
        contributions=commit.contributions,
        refused=commit.refused,
        absent=commit.absent,
        out_of_memory={site: commit.too_large.get(site, 0) for site in commit.out_of_memory},
        late=commit.late,
        truncated_energy=max(commit.truncated_energy.values(), default=0.0),
        finished_at=commit.finished_at,
        bytes_read=commit.bytes_read,
        seconds=commit.seconds,
        download=commit.download,
    )


def summarize_evaluation(evaluation: RoundEvaluation, metric: str = "loss") -> EvaluationSummary:
    """The summary of a federated evaluation, with what each site measured of the loss and of this metric, the run's."""
    by_metric = {name: evaluation.by_site(name) for name in sorted({"loss", metric})}
    return EvaluationSummary(
        round=evaluation.round,
        loss=evaluation.loss,
        metrics=evaluation.metrics,
        sites=tuple(sorted(evaluation.sites)),
        missing=evaluation.missing,
        needed=evaluation.needed,
        late=evaluation.late,
        metric=metric,
        site_values={name: values for name, values in by_metric.items() if values.sites},
    )


@dataclass(frozen=True)
class Observed:
    """The store and the jobs. Results are by site and attempt; updates and verdicts are the current round's, evaluations the last one's."""

    resumed_at: float = 0.0
    """When this run was last resumed (its start, the end of a suspension), Unix seconds: no deadline counts from before."""
    jobs: Mapping[str, JobStatus] = field(default_factory=dict)
    profiles: Mapping[str, Mapping[int, AdmittedProfile]] = field(default_factory=dict)
    """Only until the round is planned."""
    plan: RoundPlan | None = None
    """The newest one, whole."""
    plans: Mapping[int, PlanSummary] = field(default_factory=dict)
    """The newest one too."""
    out_of_reach: OutOfReach | None = None
    """What a worker wrote in place of the current round's plan."""
    expired_profiles: ExpiredProfiles | None = None
    """Those before the current round, if it could not be planned."""
    commits: Mapping[int, CommitSummary] = field(default_factory=dict)
    learned: Mapping[str, float] = field(default_factory=dict)
    """By weight how much the last committed round changed it; only until the next round is planned."""
    evaluations: Mapping[int, EvaluationSummary] = field(default_factory=dict)
    updates: Mapping[str, Mapping[int, AdmittedUpdate]] = field(default_factory=dict)
    verdicts: Mapping[str, Mapping[int, Verdict]] = field(default_factory=dict)
    site_evaluations: Mapping[str, Mapping[int, AdmittedEvaluation]] = field(default_factory=dict)
    """Of the last committed round's adapter (before round 1 is committed, of the base), until its federated evaluation is committed."""
    dry_exports: Mapping[int, AdmittedDryExport] = field(default_factory=dict)
    exports: Mapping[int, AdmittedExport] = field(default_factory=dict)
    refused: Mapping[str, Refused] = field(default_factory=dict)
    """By key of a result that was not admitted: it is in none of the mappings above."""
    reported: frozenset[str] = frozenset()
    """Active jobs that have left their result: they end by themselves, or their backend ends what keeps them alive."""
    busy: Mapping[str, str] = field(default_factory=dict)
    """Sites without a free job slot, and what a further job would wait for."""
    refused_progress: Mapping[str, Refused] = field(default_factory=dict)
    """By job: why the progress that its trainer wrote last was not admitted. Nothing depends on it."""
    tracked: Observation | None = None
    """What is known of the run's trackers, for their condition. Nothing depends on it; None: the run has none."""

    @property
    def round(self) -> int:
        """The current round, from 1: the one after the last committed one. After the run's last round, one more than there are."""
        return self.last_round + 1

    @property
    def last_round(self) -> int:
        """The last committed round, whose adapter the current round starts from; 0, the base, before round 1 is committed."""
        return max((*self.commits, *self.evaluations), default=0)

    @property
    def refused_updates(self) -> dict[str, Refused]:
        """By site: why a result of its training in the current round was not admitted."""
        folder = f"{names.round_folder(self.round)}/updates/"
        return {key.removeprefix(folder).split("/")[0]: one for key, one in sorted(self.refused.items()) if key.startswith(folder)}

    @property
    def last_round_ended_at(self) -> float:
        """When the last round was committed, Unix seconds; 0 if none was."""
        return max((one.finished_at for one in self.commits.values()), default=0.0)


def job_of(run: Run, kind: TaskKind, *, site: str = "", round_: int = 0, attempt: int = 0) -> Job:
    """The job of one attempt at one task; its name is the same in every reconcile."""
    name = names.job(run.name, kind, site=site, round_=round_, attempt=attempt)
    return Job(name=name, kind=kind, site=site, round=round_, attempt=attempt)
