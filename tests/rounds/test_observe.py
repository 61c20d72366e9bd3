"""What is observed of a run: the objects and jobs that belong to it, and what becomes of objects that cannot be read."""

import json
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any, ClassVar

import pytest
from stand_in_runs import World, a_run
from trainer_results import a_profile, an_update, good_trainer, path_of

from fedpipe_operator import names
from fedpipe_operator.admission import RefusalReason
from fedpipe_operator.backend import Job, JobState, JobStatus, TaskKind
from fedpipe_operator.errors import UserError
from fedpipe_operator.memory_budget import Holding, MemoryBudget
from fedpipe_operator.reconcile import observe as observations
from fedpipe_operator.reconcile.observe import ObjectCache, observe
from fedpipe_operator.rounds import Observed, Run, job_of
from fedpipe_operator.rounds.observed import EvaluationSummary, summarize_commit
from fedpipe_operator.rounds.policies import has_quorum
from fedpipe_operator.rounds.records import Contribution, RoundCommit, RoundEvaluation, RoundPlan, SiteEvaluation, SiteValues, Verdict
from fedpipe_operator.store import DirectoryStore
from fedpipe_trainer.contract import (
    Artifact,
    EvaluateResult,
    EvaluateTask,
    Failure,
    FailureReason,
    Forecast,
    Measured,
    Outcome,
    Plan,
    ProfileResult,
    ProfileTask,
    RunRef,
    TrainResult,
    TrainTask,
)

REF = RunRef(namespace="default", name="toy", uid="uid-1")


@pytest.fixture
def store(tmp_path: Path) -> DirectoryStore:
    return DirectoryStore(tmp_path / "store")


def context(
    store: DirectoryStore, *, jobs: Mapping[str, JobStatus] | None = None, cache: ObjectCache | None = None, run: Run | None = None
) -> Observed:
    return observe(run or a_run(), jobs or {}, store, cache or ObjectCache(), 0.0)


def put(store: DirectoryStore, key: str, value: Any) -> None:
    store.write(key, value.to_json().encode())


def an_update_of(site: str, round_: int, attempt: int, **changes: Any) -> TrainResult:
    """As `put_plan` plans it."""
    header = {"run": REF, "site": site, "round": round_, "attempt": attempt, "outcome": Outcome.COMPLETED, "measured": Measured()}
    adapter = Artifact(name="adapter.safetensors", size=9, sha256="a" * 64)
    return TrainResult(**(header | {"fingerprint": "f" * 64, "adapter": adapter, "steps": 10, "samples": 10} | changes))


def a_profile_of(site: str, attempt: int) -> ProfileResult:
    header = {"run": REF, "site": site, "round": 0, "attempt": attempt, "measured": Measured()}
    failure = Failure(reason=FailureReason.UNEXPECTED, message="of no interest here")
    return ProfileResult(**header, outcome=Outcome.FAILED, failure=failure)


def put_plan(store: DirectoryStore, round_: int) -> None:
    """Ten steps of one sample for each site, and no adapters."""
    forecast = Forecast(memory_bytes=0, seconds=0, upload_bytes=0, download_bytes=0)
    sites = ("site-a", "site-b", "site-c")
    plans = {site: Plan(bits=32, batch_size=1, steps=10, ranks={}, forecast=forecast) for site in sites}
    plan = RoundPlan(
        round=round_, started_at=0.0, fingerprint="f" * 64, weights={}, plans=plans, selected=sites, evaluators=sites, needed=1
    )
    put(store, names.round_plan(round_), plan)


def an_evaluation_of(site: str, round_: int, attempt: int) -> EvaluateResult:
    return EvaluateResult(run=REF, site=site, round=round_, attempt=attempt, outcome=Outcome.COMPLETED, measured=Measured())


def evaluated(round_: int) -> RoundEvaluation:
    return RoundEvaluation(round=round_, finished_at=0.0)


def a_commit(round_: int) -> RoundCommit:
    adapter = Artifact(name=f"rounds/000{round_}/global.safetensors", size=9, sha256="a" * 64)
    return RoundCommit(round=round_, method="Exact", adapter=adapter, ranks={}, contributions=())


def running(job: Job) -> JobStatus:
    return JobStatus(job, JobState.RUNNING, 0.0)


def test_an_empty_store_is_a_run_that_has_not_begun(store: DirectoryStore) -> None:
    observed = context(store)

    assert (observed.round, observed.last_round) == (1, 0)
    assert observed.profiles == {"site-a": {}, "site-b": {}, "site-c": {}}
    assert (observed.plans, observed.commits, observed.evaluations, observed.exports) == ({}, {}, {}, {})


def test_updates_and_verdicts_are_those_of_the_round_under_way(store: DirectoryStore) -> None:
    for round_ in (0, 1):
        put(store, names.round_evaluation(round_), evaluated(round_))
    for round_ in (1, 2):
        put_plan(store, round_)
        put(store, names.update_result(round_, "site-a", 0), an_update_of("site-a", round_, 0))
        put(store, names.update_verdict(round_, "site-a", 0), Verdict(accepted=False, reason=f"OfRound{round_}"))

    observed = context(store)

    assert observed.round == 2
    assert observed.updates["site-a"][0].round == 2
    assert observed.verdicts["site-a"][0].reason == "OfRound2"


def test_a_sites_attempts_are_found_behind_one_that_left_nothing(store: DirectoryStore) -> None:
    put(store, names.round_evaluation(0), evaluated(0))
    put_plan(store, 1)
    put(store, names.update_result(1, "site-b", 2), an_update_of("site-b", 1, 2))

    assert {site: sorted(attempts) for site, attempts in context(store).updates.items()} == {"site-a": [], "site-b": [2], "site-c": []}


def test_an_attempt_is_found_however_often_the_work_was_interrupted_before_it(store: DirectoryStore) -> None:
    put(store, names.profile_result("site-a", 40), a_profile_of("site-a", 40))

    assert list(context(store).profiles["site-a"]) == [40]


def test_a_run_of_one_site_whose_first_profile_was_killed_goes_on_with_the_second(tmp_path: Path) -> None:
    def trainer(task: Any, folder: Path) -> Any:
        return None if isinstance(task, ProfileTask) and task.attempt == 0 else good_trainer(task, folder)

    world = World(a_run(1), tmp_path, trainer)
    world.settle()

    assert world.conditions()["Complete"] == "RoundsCompleted"


def test_a_site_that_is_not_the_runs_is_not_read(store: DirectoryStore) -> None:
    put(store, names.round_evaluation(0), evaluated(0))
    put(store, names.update_result(1, "site-z", 0), an_update_of("site-z", 1, 0))

    assert "site-z" not in context(store).updates


def test_jobs_of_another_run_of_the_same_backend_are_not_observed(store: DirectoryStore) -> None:
    ours = Job("toy-train-r1-site-a-a0", TaskKind.TRAIN, "site-a", 1, 0)
    others = Job("toy-local-only-site-a-train-r1-site-a-a0", TaskKind.TRAIN, "site-a", 1, 0)

    observed = context(store, jobs={job.name: running(job) for job in (ours, others)})

    assert list(observed.jobs) == [ours.name]


def test_what_was_read_once_is_not_read_again(store: DirectoryStore) -> None:
    cache = ObjectCache()
    put(store, names.round_evaluation(0), evaluated(0))
    put_plan(store, 1)
    put(store, names.update_result(1, "site-a", 0), an_update_of("site-a", 1, 0, samples=7))
    context(store, cache=cache)
    put(store, names.update_result(1, "site-a", 0), an_update_of("site-a", 1, 0, samples=8))

    assert context(store, cache=cache).updates["site-a"][0].samples == 7
    assert context(store).updates["site-a"][0].samples == 8


def test_what_was_not_there_at_the_first_observation_is_found_at_the_next(store: DirectoryStore) -> None:
    cache = ObjectCache()
    context(store, cache=cache)
    put(store, names.round_evaluation(0), evaluated(0))

    assert context(store, cache=cache).round == 1


def test_the_cache_drops_what_an_observation_does_not_use_any_more(store: DirectoryStore) -> None:
    cache = ObjectCache()
    put(store, names.round_evaluation(0), evaluated(0))
    put(store, names.update_result(1, "site-a", 0), an_update_of("site-a", 1, 0))
    context(store, cache=cache)
    assert names.update_result(1, "site-a", 0) in cache.objects

    put(store, names.round_evaluation(1), evaluated(1))
    context(store, cache=cache)
    context(store, cache=cache)

    assert set(cache.objects) == {names.round_evaluation(0), names.round_evaluation(1)}


class RecordingStore(DirectoryStore):
    """Records what is listed and read."""

    listed: ClassVar[list[str]] = []
    read_keys: ClassVar[list[str]] = []

    def list(self, prefix: str = "") -> list[str]:
        self.listed.append(prefix)
        return super().list(prefix)

    def read(self, key: str) -> bytes | None:
        self.read_keys.append(key)
        return super().read(key)

    def read_start(self, key: str, at_most: int) -> bytes | None:
        self.read_keys.append(key)
        return super().read_start(key, at_most)

    def requests(self) -> tuple[Any, Any]:
        """What was listed and read since the last time."""
        requests = [*self.listed], [*self.read_keys]
        self.listed.clear()
        self.read_keys.clear()
        return requests


def test_an_observation_reads_what_may_be_new_and_nothing_else(store: DirectoryStore) -> None:
    cache, counting = ObjectCache(), RecordingStore(store.root)
    profile = job_of(a_run(), TaskKind.PROFILE, site="site-a")
    put(store, names.round_evaluation(0), evaluated(0))
    context(counting, cache=cache)
    counting.requests()

    context(counting, cache=cache)
    assert counting.requests() == (["rounds/0001"], [])
    context(counting, cache=cache, jobs={profile.name: running(profile)})
    assert sorted(counting.requests()[0]) == ["profile", "rounds/0001"]
    ended = {profile.name: replace(running(profile), state=JobState.SUCCEEDED, exit_code=0)}
    put(store, names.update_result(1, "site-a", 0), an_update_of("site-a", 1, 0))
    put(store, names.profile_result("site-a", 0), a_profile_of("site-a", 0))
    assert list(context(counting, cache=cache, jobs=ended).profiles["site-a"]) == [0]
    counting.requests()
    context(counting, cache=cache, jobs=ended)
    assert counting.requests()[0] == ["rounds/0001"]


def test_while_a_round_is_not_planned_the_last_plan_is_not_looked_up_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    world = World(a_run(2, rounds={"count": 3}), tmp_path)
    world.work_until("aggregate-r1")
    cache, sizes = ObjectCache(), list[str]()
    context(world.store, cache=cache, run=world.run)  # type: ignore[arg-type]
    world.backend.work("toy-aggregate-r1-a0")
    monkeypatch.setattr(world.store, "size", sizes.append)

    observed = context(world.store, cache=cache, run=world.run)  # type: ignore[arg-type]

    assert observed.plan is not None
    assert (observed.round, observed.plan.round, sizes) == (2, 1, [])


def test_of_earlier_rounds_plans_a_summary_is_kept_and_of_profiles_nothing(tmp_path: Path) -> None:
    world = World(a_run(2, rounds={"count": 3}), tmp_path)
    world.work_until("r3")
    cache = ObjectCache()

    for _ in range(2):
        observed = context(world.store, cache=cache, run=world.run)  # type: ignore[arg-type]
        assert observed.plan is not None
        assert (observed.plan.round, sorted(observed.plan.plans)) == (3, ["site-a", "site-b"])
        assert [round_ for round_, plan in observed.plans.items() if plan.facts] == [1]
        assert observed.plans[1].facts is not None
        assert observed.plans[1].facts.weights == observed.plan.weights
        assert all(plan.selected == ("site-a", "site-b") for plan in observed.plans.values())
        assert observed.profiles == {}
    assert not any(isinstance(value, ProfileResult) for value in cache.objects.values())


def test_of_commits_the_figures_of_each_weight_are_not_kept_but_the_largest_truncation(store: DirectoryStore) -> None:
    cache = ObjectCache()
    whole = RoundCommit(
        round=1,
        method="exact",
        adapter=Artifact(name="rounds/0001/global.safetensors", size=9, sha256="a" * 64),
        ranks={"q": 8, "v": 4},
        head={"classifier": (3, 8)},
        contributions=(Contribution(site="site-a", attempt=0, sha256="b" * 64, samples=10, share=1.0),),
        truncated_energy={"q": 0.25, "v": 0.125},
    )
    kept = summarize_commit(whole)
    assert kept.truncated_energy == 0.25
    put(store, names.round_evaluation(0), evaluated(0))
    put(store, names.round_commit(1), whole)

    for _ in range(2):
        assert context(store, cache=cache).commits == {1: kept}
        assert cache.objects[names.round_commit(1)] == kept


def test_of_evaluations_only_what_makes_rounds_comparable_is_kept_of_each_site(store: DirectoryStore) -> None:
    cache = ObjectCache()
    sites = {
        "north": SiteEvaluation(samples=4, targets=9, loss=0.5, metrics={"accuracy": 0.25}),
        "south": SiteEvaluation(samples=6, targets=6, metrics={"accuracy": 0.5}),
    }
    whole = evaluated(0).model_copy(
        update={"loss": 0.5, "metrics": {"accuracy": 0.4}, "sites": sites, "missing": {"west": "late"}, "needed": 2}
    )
    put(store, names.round_evaluation(0), whole)

    loss, accuracy = SiteValues(("north",), (0.5,), (9,)), SiteValues(("north", "south"), (0.25, 0.5), (4, 6))
    values = {"loss": loss, "accuracy": accuracy}
    fields = {"sites": ("north", "south"), "missing": {"west": "late"}, "needed": 2, "metric": "accuracy", "site_values": values}
    summary = EvaluationSummary(round=0, loss=0.5, metrics={"accuracy": 0.4}, **fields)
    assert context(store, cache=cache).evaluations == {0: summary}
    assert cache.objects == {names.round_evaluation(0): summary}


def test_after_an_edit_of_the_target_evaluations_are_what_a_new_operator_would_observe(store: DirectoryStore) -> None:
    cache = ObjectCache()
    site = SiteEvaluation(samples=4, targets=9, loss=0.5, metrics={"accuracy": 0.25, "macroF1": 0.2})
    for round_ in range(3):
        put(store, names.round_evaluation(round_), evaluated(round_).model_copy(update={"sites": {"north": site}, "needed": 1}))
    context(store, cache=cache)
    edited = a_run(rounds={"count": 9, "deadline": "10m", "target": {"metric": "macroF1", "value": 0.9}})
    counting = RecordingStore(store.root)
    counting.requests()

    observed = context(counting, cache=cache, run=edited)

    assert sorted(observed.evaluations) == [0, 1, 2]
    assert all(has_quorum(one, "macroF1") for one in observed.evaluations.values())
    assert observed.evaluations == context(store, run=edited).evaluations
    counting.requests()
    context(counting, cache=cache, run=edited)
    assert names.round_evaluation(1) not in counting.requests()[1], "it is read once"


def test_an_interrupted_observation_leaves_nothing_to_the_next(store: DirectoryStore) -> None:
    cache = ObjectCache()
    context(store, cache=cache)
    cache.listing(store, "rounds/0001")
    put_plan(store, 1)
    put(store, names.update_result(1, "site-a", 0), an_update_of("site-a", 1, 0))
    put(store, names.round_evaluation(0), evaluated(0))

    assert list(context(store, cache=cache).updates["site-a"]) == [0]


def test_observing_a_long_run_lists_the_current_round_and_no_other(store: DirectoryStore) -> None:
    for round_ in range(50):
        put(store, names.round_evaluation(round_), evaluated(round_))
    counting = RecordingStore(store.root)
    counting.requests()

    observed = context(counting, run=a_run(rounds={"count": 100}))

    assert observed.round == 50
    assert sorted(counting.requests()[0]) == ["export", "profile", "rounds/0050"]


def test_until_the_last_round_is_evaluated_its_folder_is_listed_as_well(store: DirectoryStore) -> None:
    cache, counting, run = ObjectCache(), RecordingStore(store.root), a_run(rounds={"count": 9})
    for round_ in range(3):
        put(store, names.round_evaluation(round_), evaluated(round_))
    for round_ in (1, 2, 3):
        put(store, names.round_commit(round_), a_commit(round_))
    put(store, names.evaluation_result(3, "site-b", 1), an_evaluation_of("site-b", 3, 1))
    context(counting, cache=cache, run=run)
    counting.requests()

    observed = context(counting, cache=cache, run=run)

    assert (observed.round, observed.last_round) == (4, 3)
    assert {site: list(attempts) for site, attempts in observed.site_evaluations.items()} == {"site-a": [], "site-b": [1], "site-c": []}
    assert counting.requests() == (["rounds/0003", "rounds/0004"], [names.round_commit(3)]), "for the plan: what round 3 changed"

    put(store, names.round_evaluation(3), evaluated(3))
    context(counting, cache=cache, run=run)
    counting.requests()
    observed = context(counting, cache=cache, run=run)

    assert (observed.round, observed.site_evaluations["site-b"]) == (4, {})
    assert counting.requests() == (["rounds/0004"], [names.round_commit(3)])


def test_after_the_last_round_the_profiles_are_not_read_again(tmp_path: Path) -> None:
    world = World(a_run(2, rounds={"count": 1}), tmp_path)
    world.work_until("evaluate-r1")

    observed = context(world.store, run=world.run)  # type: ignore[arg-type]

    assert (observed.round, observed.profiles) == (2, {})


def test_a_job_that_left_its_result_is_about_to_end_whatever_round_it_was_of(store: DirectoryStore) -> None:
    run = a_run()
    done, at_it, earlier = (
        job_of(run, TaskKind.TRAIN, site="site-a", round_=2),
        job_of(run, TaskKind.TRAIN, site="site-b", round_=2),
        job_of(run, TaskKind.EVALUATE, site="site-a", round_=1),
    )
    for round_ in range(2):
        put(store, names.round_evaluation(round_), evaluated(round_))
    put(store, names.update_result(2, "site-a", 0), an_update_of("site-a", 2, 0))
    store.write(names.evaluation_result(1, "site-a", 0), b"{}")

    observed = context(store, run=run, jobs={job.name: running(job) for job in (done, at_it, earlier)})

    assert observed.reported == {done.name, earlier.name}


def test_an_interrupted_trainers_result_is_not_final_while_its_job_is_active(store: DirectoryStore) -> None:
    run, cache = a_run(), ObjectCache()
    job = job_of(run, TaskKind.TRAIN, site="site-a", round_=1)
    interrupted = {"outcome": Outcome.FAILED, "failure": Failure(reason=FailureReason.TERMINATED, message="SIGTERM")}
    put(store, names.round_evaluation(0), evaluated(0))
    put_plan(store, 1)
    put(store, names.update_result(1, "site-a", 0), an_update_of("site-a", 1, 0, **interrupted))

    before = context(store, run=run, jobs={job.name: running(job)}, cache=cache)
    put(store, names.update_result(1, "site-a", 0), an_update_of("site-a", 1, 0))
    after = context(store, run=run, jobs={job.name: running(job)}, cache=cache)

    assert (before.reported, after.reported) == (frozenset(), {job.name})
    assert after.updates["site-a"][0].outcome is Outcome.COMPLETED


def test_what_one_site_sends_has_a_bound_of_its_own_which_costs_no_other(store: DirectoryStore, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(observations, "SITE_BYTES", 0)  # twice the largest profile remains
    for attempt in range(3):
        result = a_profile_of("site-a", attempt).to_json() + " " * 900_000
        store.write(names.profile_result("site-a", attempt), result.encode())
    put(store, names.profile_result("site-b", 0), a_profile_of("site-b", 0))
    cache = ObjectCache()

    observed = context(store, cache=cache)

    assert {site: sorted(attempts) for site, attempts in observed.profiles.items()} == {"site-a": [0, 1], "site-b": [0], "site-c": []}
    assert observed.refused[names.profile_result("site-a", 2)].reason is RefusalReason.TOO_LARGE
    assert context(store, cache=cache).refused == observed.refused


def test_a_run_whose_objects_do_not_fit_says_so_and_leaves_the_memory_to_others(store: DirectoryStore) -> None:
    put(store, names.round_evaluation(0), evaluated(0))
    put_plan(store, 1)
    budget = MemoryBudget(40_000)
    cache = ObjectCache(holding=Holding(budget, "default"))
    others = Holding(budget, "others")
    others.hold("plan", 15_000)

    with pytest.raises(UserError, match=r"take .* KiB of the operator's memory, and its share is 12.2 KiB") as raised:
        context(store, cache=cache)

    assert raised.value.reason == "RecordsTooLarge"
    assert (cache.objects, budget.held("default")) == ({}, 0)
    others.close()
    assert context(store, cache=cache).plan is not None
    assert 0 < budget.held("default") <= 20_000


def test_rounds_that_are_over_take_what_their_summaries_take(store: DirectoryStore) -> None:
    budget = MemoryBudget(2**30)
    cache = ObjectCache(holding=Holding(budget, "default"))
    put(store, names.round_evaluation(0), evaluated(0))
    put_plan(store, 1)
    commit = a_commit(1).model_copy(update={"learned": {f"weight.{number}": 0.5 for number in range(10_000)}})
    put(store, names.round_commit(1), commit)
    put(store, names.round_evaluation(1), evaluated(1))

    context(store, cache=cache)  # reads what round 1 changed, for the plan of round 2
    put_plan(store, 2)
    context(store, cache=cache)

    assert budget.held("default") < 50_000


def test_an_interrupted_trainers_result_is_read_once_when_its_job_has_ended(store: DirectoryStore) -> None:
    run, cache, counting = a_run(), ObjectCache(), RecordingStore(store.root)
    job = job_of(run, TaskKind.TRAIN, site="site-a", round_=1)
    interrupted = {"outcome": Outcome.FAILED, "failure": Failure(reason=FailureReason.TERMINATED, message="SIGTERM")}
    put(store, names.round_evaluation(0), evaluated(0))
    put_plan(store, 1)
    key = names.update_result(1, "site-a", 0)
    put(store, key, an_update_of("site-a", 1, 0, **interrupted))

    for _ in range(3):
        context(counting, run=run, jobs={job.name: JobStatus(job, JobState.FAILED, 0.0, exit_code=143)}, cache=cache)

    _, read = counting.requests()
    assert read.count(key) == 1


def test_an_update_of_a_site_that_is_gone_counts_if_it_came_in_time(tmp_path: Path) -> None:
    world = World(a_run(), tmp_path)
    world.work_until("train-r1")
    world.backend.work("toy-train-r1-site-a-a0")
    world.run = replace(world.run, sites=world.run.sites[1:])

    assert world.reconcile().status.updates.summary == "1/3"


@pytest.mark.parametrize(
    ("damage", "what"),
    [
        (lambda text: text.replace('"schemaVersion": 1', '"schemaVersion": 2'), "schemaVersion: literal error"),
        (lambda text: text[: len(text) // 2], "is not JSON in UTF-8"),
        (lambda text: text.replace('"kind": "train"', '"kind": "evaluate"'), "kind: literal error"),
        (lambda _text: "", "is not JSON in UTF-8"),
    ],
)
def test_a_trainers_result_that_cannot_be_read_is_refused_and_the_other_sites_updates_count(
    store: DirectoryStore, damage: Any, what: str
) -> None:
    put(store, names.round_evaluation(0), evaluated(0))
    put_plan(store, 1)
    store.write(names.update_result(1, "site-a", 0), damage(an_update_of("site-a", 1, 0).to_json()).encode())
    put(store, names.update_result(1, "site-b", 0), an_update_of("site-b", 1, 0))

    observed = context(store)

    refused = observed.refused_updates["site-a"]
    assert refused.reason == "Unreadable"
    assert what in refused.message
    assert observed.updates["site-a"] == {}
    assert observed.updates["site-b"][0].outcome is Outcome.COMPLETED


def test_a_fault_of_the_admission_itself_is_that_sites_refusal(store: DirectoryStore, monkeypatch: pytest.MonkeyPatch) -> None:
    def faulty(data: bytes, **_: object) -> Any:
        raise ZeroDivisionError(data)

    put(store, names.round_evaluation(0), evaluated(0))
    put_plan(store, 1)
    put(store, names.update_result(1, "site-a", 0), an_update_of("site-a", 1, 0))
    monkeypatch.setattr("fedpipe_operator.rounds.admitting.admit_update", faulty)

    assert str(context(store).refused_updates["site-a"]) == "Unreadable: its result cannot be admitted: ZeroDivisionError; see the log"


def test_of_a_result_of_any_size_no_more_is_read_than_it_may_have(store: DirectoryStore, monkeypatch: pytest.MonkeyPatch) -> None:
    lengths = list[int]()
    put(store, names.round_evaluation(0), evaluated(0))
    put_plan(store, 1)
    store.write(names.update_result(1, "site-a", 0), bytes(40_000_000))
    monkeypatch.setattr(store, "read_start", lambda key, most: lengths.append(most) or DirectoryStore.read_start(store, key, most))

    refused = context(store).refused_updates["site-a"]

    assert refused.reason == "TooLarge"
    assert lengths == [2**20 + 32 * 10 + 1]


def test_an_object_of_the_operator_that_cannot_be_read_is_reported_by_its_key(store: DirectoryStore) -> None:
    store.write(names.round_plan(1), b'{"round": 1}')

    with pytest.raises(UserError, match=f"{names.round_plan(1)} is not a valid RoundPlan: startedAt: Field required") as raised:
        context(store)

    assert raised.value.reason == "ObjectUnreadable"


def test_a_plan_that_somebody_made_long_has_no_results_of_any_length_read(store: DirectoryStore) -> None:
    """Whoever has the key pair of the bucket can write it: with 10^12 steps, a result could have 32 terabytes."""
    put_plan(store, 1)
    store.write(names.round_plan(1), (store.read(names.round_plan(1)) or b"").replace(b'"steps": 10', b'"steps": 1000000000000'))

    with pytest.raises(UserError, match=r"plans\.site-a\.steps: Input should be less than or equal to 1000000"):
        context(store)


def test_of_a_result_no_more_than_64_mib_is_read_however_many_weights_its_plan_has(
    store: DirectoryStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    lengths = list[int]()
    put(store, names.round_evaluation(0), evaluated(0))
    put_plan(store, 1)
    ranks = ",".join(f'"{number}": 1' for number in range(50_000)).encode()
    store.write(names.round_plan(1), (store.read(names.round_plan(1)) or b"").replace(b'"ranks": {}', b'"ranks": {' + ranks + b"}"))
    store.write(names.update_result(1, "site-a", 0), b"{}")
    monkeypatch.setattr(store, "read_start", lambda key, most: lengths.append(most) or DirectoryStore.read_start(store, key, most))

    context(store)

    assert lengths == [64 * 2**20 + 1]


def test_a_message_of_an_object_that_cannot_be_read_is_short_and_printable_whoever_wrote_its_keys(store: DirectoryStore) -> None:
    store.write(names.round_plan(1), b'{"weights": {"' + "\u202e".encode() + b"q" * 10**6 + b'": 1}}')

    with pytest.raises(UserError) as raised:
        context(store)

    assert raised.value.message.isprintable()
    assert len(raised.value.message) < 500


@pytest.mark.parametrize("kind", [ProfileTask, TrainTask, EvaluateTask])
def test_a_site_whose_trainer_is_of_a_newer_version_is_tried_again_then_counted_out_and_the_others_go_on(
    tmp_path: Path, kind: type[Any]
) -> None:
    world = World(a_run(sites={"quorum": 0.6}, rounds={"count": 1}), tmp_path)
    for _ in range(100):
        world.reconcile()
        for name in world.backend.active_jobs():
            world.backend.work(name)
            if kind.model_fields["kind"].default in name and "site-b" in name:
                _write_as_newer(world, name)
        if world.conditions().keys() & {"Complete", "Failed"}:
            break

    assert world.conditions()["Complete"] == "RoundsCompleted"
    word = kind.model_fields["kind"].default
    tried = [name for name in world.backend.started if word in name and name.removesuffix("-a0").removesuffix("-a1").endswith("site-b")]
    assert sorted({name[-2:] for name in tried}) == ["a0", "a1"]


def _write_as_newer(world: World, name: str) -> None:
    file = path_of(json.loads(world.backend.tasks[name])["result"])
    file.write_text(file.read_text().replace('"schemaVersion": 1', '"schemaVersion": 2'))


def test_an_export_whose_result_cannot_be_read_fails_the_run_with_the_reason(tmp_path: Path) -> None:
    world = World(a_run(rounds={"count": 1}), tmp_path)
    for _ in range(100):
        world.reconcile()
        for name in world.backend.active_jobs():
            world.backend.work(name)
            if "toy-export" in name:
                _write_as_newer(world, name)
        if world.conditions().keys() & {"Complete", "Failed"}:
            break

    assert world.conditions()["Failed"] == "ExportFailed"
    assert "schemaVersion" in world.message("Failed")


def test_an_update_that_comes_after_its_round_was_committed_changes_nothing(tmp_path: Path) -> None:
    world = World(a_run(sites={"quorum": 0.6}, rounds={"count": 2, "deadline": "10m"}), tmp_path)
    late = _until_late(world)
    world.now += 600
    while not world.store.read(names.round_commit(1)):
        world.reconcile()
        for name in world.backend.active_jobs():
            world.backend.work(name)
    committed = world.store.read(names.round_commit(1))

    task = TrainTask.model_validate_json(world.backend.tasks[late])
    path_of(task.result).parent.mkdir(parents=True, exist_ok=True)
    path_of(task.result).write_text(an_update(task, tmp_path).to_json())
    world.settle()

    first, second = world.run.resource.status.history
    assert world.store.read(names.round_commit(1)) == committed
    assert (first.updates, second.updates) == ("2/3", "3/3")
    assert list(first.left_out) == ["site-c"]


def _until_late(world: World) -> str:
    """Work until site-c alone is left training in round 1; the name of its job."""
    active_jobs = world.work_until("train-r1")
    late = next(name for name in active_jobs if "site-c" in name)
    for name in active_jobs:
        if name != late:
            world.backend.work(name)
    return late


def test_a_good_trainer_leaves_what_can_be_observed(tmp_path: Path) -> None:
    def trainer(task: Any, folder: Path) -> Any:
        return a_profile(task, train_samples=41) if isinstance(task, ProfileTask) else good_trainer(task, folder)

    world = World(a_run(1), tmp_path, trainer)
    world.settle()

    observed = context(world.store, run=a_run(1, rounds={"count": 3}))
    profile = observed.profiles["site-a"][0]
    assert isinstance(profile, ProfileResult)
    assert profile.train_samples == 41
    assert sorted(observed.commits) == [1, 2]
    assert observed.exports[0].outcome is Outcome.COMPLETED
    assert observed.exports[0].failure is None
