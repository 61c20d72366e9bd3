"""What `decide` is given: what a run is, and what was seen of it in one look. Values only."""

from collections.abc import Mapping
from dataclasses import dataclass, field

from fedpipe_operator import names
from fedpipe_operator.api import EdgeSite, FederatedFineTune, FineTuneSpec
from fedpipe_operator.backend import Job, JobStatus
from fedpipe_operator.rounds.records import RoundCommit, RoundEvaluation, RoundPlan, Verdict
from fedpipe_trainer.contract import EvaluateResult, ExportResult, ProfileResult, RunRef, TrainResult


@dataclass(frozen=True)
class Run:
    """A run and its sites (those that the selector matches), sorted by name."""

    resource: FederatedFineTune
    sites: tuple[EdgeSite, ...]

    @property
    def name(self) -> str:
        """The run's name."""
        return self.resource.metadata.name

    @property
    def spec(self) -> FineTuneSpec:
        """What is asked for."""
        return self.resource.spec

    @property
    def ref(self) -> RunRef:
        """The run, as tasks and results name it."""
        meta = self.resource.metadata
        return RunRef(namespace=meta.namespace, name=meta.name, uid=meta.uid)


@dataclass(frozen=True)
class Observed:
    """One look at the store and the jobs. Manifests are by site and attempt; those of rounds are the current round's."""

    resumed_at: float = 0.0
    """When this run was last taken up (start, end of a suspension): no deadline counts from before."""
    jobs: Mapping[str, JobStatus] = field(default_factory=dict)
    profiles: Mapping[str, Mapping[int, ProfileResult]] = field(default_factory=dict)
    """While the round is not planned."""
    plans: Mapping[int, RoundPlan] = field(default_factory=dict)
    """Those of the sites in the newest alone."""
    commits: Mapping[int, RoundCommit] = field(default_factory=dict)
    evaluations: Mapping[int, RoundEvaluation] = field(default_factory=dict)
    updates: Mapping[str, Mapping[int, TrainResult]] = field(default_factory=dict)
    verdicts: Mapping[str, Mapping[int, Verdict]] = field(default_factory=dict)
    site_evaluations: Mapping[str, Mapping[int, EvaluateResult]] = field(default_factory=dict)
    exports: Mapping[int, ExportResult] = field(default_factory=dict)
    reported: frozenset[str] = frozenset()
    """Jobs at work that have left their result: they are about to end by themselves."""
    busy: Mapping[str, str] = field(default_factory=dict)
    """Sites at which no further job may be started now, and what they are busy with."""

    @property
    def round(self) -> int:
        """The round under way: the one after the last evaluated one; 0 while the base itself is not evaluated."""
        return max(self.evaluations, default=-1) + 1

    @property
    def last_round_ended_at(self) -> float:
        """When the newest evaluation was written, Unix seconds; 0 before."""
        return max((one.finished_at for one in self.evaluations.values()), default=0.0)


def job_of(run: Run, kind: str, *, site: str = "", round_: int = 0, attempt: int = 0) -> Job:
    """The job for one attempt at a piece of work; its name is the same at every look."""
    name = names.job(run.name, kind, site=site, round_=round_, attempt=attempt)
    return Job(name=name, kind=kind, site=site, round=round_, attempt=attempt)
