"""A run on this machine: its reconciliation, and the comparison with local-only baselines that follows it."""

import os
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace

from fedpipe_operator import names
from fedpipe_operator.api import ConditionStatus, ConditionType, FineTuneStatus
from fedpipe_operator.backend import JobBackend, TaskKind
from fedpipe_operator.reconcile.reconciler import Placement, Reconciler
from fedpipe_operator.report import comparison
from fedpipe_operator.rounds import Event, Run, exported_round, is_over
from fedpipe_operator.rounds.events import tracking_events
from fedpipe_operator.rounds.records import Comparison, RoundCommit, RoundEvaluation, RoundPlan
from fedpipe_operator.rounds.status import tracked
from fedpipe_operator.store import Store
from fedpipe_operator.store.address import DirectoryAddress, StoreAddress, credentials_for, open_store, subfolder
from fedpipe_operator.store.objects import required_object
from fedpipe_operator.tracking.login import Login, login_in
from fedpipe_operator.tracking.trackers import Trackers
from fedpipe_operator.tracking.write import Work


@dataclass
class Session:
    """One run, its reconciler and its newest status. It is the status writer of its reconciler."""

    run: Run
    backend: JobBackend
    placement: Placement
    address: StoreAddress
    resumed_at: float
    on_status: Callable[[FineTuneStatus], None] = lambda _status: None
    on_event: Callable[[Event], None] = lambda _event: None
    trackers: Trackers | None = None
    """None: the run's trackers are not written, as for a plan or a local-only baseline."""
    store: Store = field(init=False)
    _reconciler: Reconciler = field(init=False)

    def __post_init__(self) -> None:
        self.store = open_store(self.address, credentials_for(self.address, os.environ))
        self._reconciler = Reconciler(
            backend=self.backend,
            store=self.store,
            address=self.address,
            placement=self.placement,
            status_writer=self,
            resumed_at=self.resumed_at,
        )

    @property
    def is_finished(self) -> bool:
        """Whether the run is complete or failed."""
        return is_over(self.run.resource)

    @property
    def failure(self) -> str | None:
        """Reason and message of the failure; None if the run did not fail."""
        failed = (condition for condition in self.run.resource.status.conditions if condition.type == ConditionType.FAILED)
        return next((f"{condition.reason}: {condition.message}" for condition in failed if condition.status is ConditionStatus.TRUE), None)

    def reconcile(self) -> None:
        """Reconcile the run once."""
        if self.trackers is not None:
            self._reconciler.tracked = self.trackers.sync(self.run, self._tracking).observation
        self._reconciler.reconcile(self.run)

    def forget_plan(self) -> bool:
        """Remove the plan of round 1, which the next reconcile then makes again; False if there is none, or something began with it.

        Nothing did after `fedpipe plan`, which leaves profiles and a plan.
        """
        jobs = self.backend.observe().items()
        has_begun = any(status.job.kind not in {TaskKind.PROFILE, TaskKind.PLAN} for _, status in jobs)
        if has_begun or self.store.list(names.round_folder(1)) != [names.round_plan(1)]:
            return False
        for name in (name for name, status in jobs if status.job.kind is TaskKind.PLAN):
            self.backend.discard(name)
        self.store.delete(names.round_plan(1))
        return True

    def track(self) -> bool:
        """Have the trackers of a run that is over written to its end; whether nothing more is to be done for them."""
        if self.trackers is None:
            return True
        found, resource = self.trackers.sync(self.run, self._tracking), self.run.resource
        if found.observation is not None:
            before = resource.status
            after = tracked(before, found.observation, generation=resource.metadata.generation, now=self.trackers.clock())
            if after != before:
                self.write_status(self.run, after)
            for event in tracking_events(before, after):
                self.record_event(self.run, event)
        return found.requeue_at is None

    def _tracking(self) -> Work:
        """What it takes to write the run's trackers; the login is in the environment, if the run names a Secret for it."""
        mlflow = self.run.spec.tracking.mlflow
        needs_login = mlflow is not None and mlflow.credentials_secret_ref is not None
        login = login_in(os.environ, "the environment, where the Secret's keys are looked for on one machine,") if needs_login else Login()
        location = self.address.root if isinstance(self.address, DirectoryAddress) else self.address.url
        return Work(self.run, self.store, location, login=login)

    def write_status(self, run: Run, status: FineTuneStatus) -> None:
        """Keep the status for the next `reconcile`, and pass it on."""
        self.run = replace(run, resource=run.resource.model_copy(update={"status": status}))
        self.on_status(status)

    def record_event(self, run: Run, event: Event) -> None:
        """Pass the event on."""
        del run
        self.on_event(event)


def local_only_sessions(parent: Session) -> dict[str, Session]:
    """By site whose policy allows it, the session of its local-only baseline. A baseline that an earlier process began is resumed."""
    first = required_object(parent.store, names.round_plan(1), RoundPlan)
    base = required_object(parent.store, names.round_evaluation(0), RoundEvaluation)
    commits = {round_: required_object(parent.store, names.round_commit(round_), RoundCommit) for round_ in _rounds(parent)}
    allowed = {site.name for site in parent.run.sites if site.spec.policy.local_baseline}
    trained = {site: comparison.rounds_trained(site, commits) for site in first.plans if site in allowed}
    return {site: _local_only_session(parent, site, rounds, first, base) for site, rounds in trained.items() if rounds > 0}


def compare(parent: Session, baselines: Mapping[str, Session]) -> Comparison:
    """Compare the base, the local-only baselines and the federated model, and write the result to the store."""
    base = required_object(parent.store, names.round_evaluation(0), RoundEvaluation)
    rounds = {round_: required_object(parent.store, names.round_evaluation(round_), RoundEvaluation) for round_ in _rounds(parent)}
    best = exported_round(parent.run.spec, rounds)
    results = {
        site: required_object(session.store, names.round_evaluation(1), RoundEvaluation)
        for site, session in baselines.items()
        if session.failure is None
    }
    result = comparison.make_comparison(base=base, federated=rounds[best], local_only=results)
    parent.store.write(names.COMPARISON, result.to_json().encode())
    return result


def _local_only_session(parent: Session, site: str, rounds: int, first: RoundPlan, base: RoundEvaluation) -> Session:
    session = Session(
        run=comparison.local_only_run(parent.run, site, rounds),
        backend=parent.backend,
        placement=parent.placement,
        address=subfolder(parent.address, names.local_only_folder(site)),
        resumed_at=parent.resumed_at,
    )
    session.store.create(names.round_plan(1), comparison.local_only_plan(first, site, rounds).to_json().encode())
    session.store.create(names.round_evaluation(0), base.to_json().encode())
    return session


def _rounds(parent: Session) -> range:
    """The rounds that have been evaluated."""
    return range(1, parent.run.resource.status.round + 1)
