"""The input of `decide`: a run, and what was observed of it. Values only."""

from collections.abc import Mapping
from dataclasses import dataclass, field

from fedpipe_operator import names
from fedpipe_operator.api import EdgeSite, FederatedFineTune, FineTuneSpec
from fedpipe_operator.backend import Job, JobStatus, TaskKind
from fedpipe_operator.rounds.records import RoundCommit, RoundEvaluation, RoundPlan, Verdict
from fedpipe_trainer.contract import EvaluateResult, ExportResult, ProfileResult, RunRef, TrainResult


@dataclass(frozen=True)
class Run:
    """A run and the sites that its selector matches, sorted by name."""

    resource: FederatedFineTune
    sites: tuple[EdgeSite, ...]

    @property
    def name(self) -> str:
        """The run's name."""
        return self.resource.metadata.name

    @property
    def spec(self) -> FineTuneSpec:
        """The run's spec."""
        return self.resource.spec

    @property
    def ref(self) -> RunRef:
        """The run's identity, as tasks and results carry it."""
        meta = self.resource.metadata
        return RunRef(namespace=meta.namespace, name=meta.name, uid=meta.uid)


@dataclass(frozen=True)
class Observed:
    """One look at the store and the jobs. Manifests are by site and attempt; those of rounds are the current round's."""

    resumed_at: float = 0.0
    """When this run was last resumed (its start, the end of a suspension), Unix seconds: no deadline counts from before."""
    jobs: Mapping[str, JobStatus] = field(default_factory=dict)
    profiles: Mapping[str, Mapping[int, ProfileResult]] = field(default_factory=dict)
    """Only until the round is planned."""
    plans: Mapping[int, RoundPlan] = field(default_factory=dict)
    """Only the newest one has the plans of the sites."""
    commits: Mapping[int, RoundCommit] = field(default_factory=dict)
    evaluations: Mapping[int, RoundEvaluation] = field(default_factory=dict)
    updates: Mapping[str, Mapping[int, TrainResult]] = field(default_factory=dict)
    verdicts: Mapping[str, Mapping[int, Verdict]] = field(default_factory=dict)
    site_evaluations: Mapping[str, Mapping[int, EvaluateResult]] = field(default_factory=dict)
    exports: Mapping[int, ExportResult] = field(default_factory=dict)
    reported: frozenset[str] = frozenset()
    """Active jobs that have left their result: they end by themselves."""
    busy: Mapping[str, str] = field(default_factory=dict)
    """Sites without a free job slot, and what a further job would wait for."""

    @property
    def round(self) -> int:
        """The current round: the one after the last evaluated one; 0 until the base is evaluated."""
        return max(self.evaluations, default=-1) + 1

    @property
    def last_round_ended_at(self) -> float:
        """When the newest evaluation was written, Unix seconds; 0 if there is none."""
        return max((one.finished_at for one in self.evaluations.values()), default=0.0)


def job_of(run: Run, kind: TaskKind, *, site: str = "", round_: int = 0, attempt: int = 0) -> Job:
    """The job of one attempt at one task; its name is the same in every reconcile."""
    name = names.job(run.name, kind, site=site, round_=round_, attempt=attempt)
    return Job(name=name, kind=kind, site=site, round=round_, attempt=attempt)
