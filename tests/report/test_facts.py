from dataclasses import replace

import pytest
from site_profiles import SMOLLM2, point

from fedpipe_operator.api import FederatedFineTune
from fedpipe_operator.report import RunRecord, write_report
from fedpipe_operator.report.facts import (
    NO_UPDATE,
    LeftOut,
    contribution_rows,
    headline,
    learned,
    learned_by,
    left_out,
    measured_rows,
    outcome_of,
    round_rows,
    shown_samples,
    site_rows,
    total_seconds,
    training_rows,
)
from fedpipe_operator.rounds.records import Contribution, LossEstimate, RoundCommit, RoundEvaluation
from fedpipe_operator.sites import granularity
from fedpipe_trainer.contract import EnergySource, EvaluateResult, Failure, FailureReason, Measured, Outcome, RunRef, Sample

ROUNDS = 6
"""The number of rounds of the record."""


def evaluated(round_: int, **metrics: float) -> RoundEvaluation:
    return RoundEvaluation(round=round_, finished_at=0.0, metrics=metrics)


def a_site_evaluation(site: str, round_: int, *, answer: str) -> EvaluateResult:
    return EvaluateResult(
        run=RunRef(namespace="default", name="newsgroups", uid="0b5c"),
        site=site,
        round=round_,
        attempt=0,
        outcome=Outcome.COMPLETED,
        measured=Measured(),
        examples=(Sample(text="t", expected="e", predicted=answer),),
    )


def with_status(record: RunRecord, **status: object) -> RunRecord:
    document = record.run.model_dump(by_alias=True) | {"status": status}
    return replace(record, run=FederatedFineTune.model_validate(document))


def test_an_exported_run_is_complete(record: RunRecord) -> None:
    assert outcome_of(record).label == "Complete"


def test_a_failed_run_has_the_message_of_its_condition(record: RunRecord) -> None:
    condition = {"type": "Failed", "status": "True", "reason": "QuorumOutOfReach", "message": "kiosk-west cannot hold the model."}
    assert outcome_of(with_status(record, conditions=[condition])).message == "kiosk-west cannot hold the model."
    assert outcome_of(with_status(record, conditions=[condition])).tone == "bad"


def test_a_condition_that_is_false_is_ignored(bare_record: RunRecord) -> None:
    condition = {"type": "Failed", "status": "False", "reason": "NotFailed"}
    assert outcome_of(with_status(bare_record, conditions=[condition])).label == "Unfinished"


def test_an_unfinished_run_has_the_number_of_its_committed_rounds(record: RunRecord) -> None:
    half = replace(record, export=None, rounds={1: record.rounds[1]})
    assert outcome_of(half).message == "1 of 6 rounds are committed."


def test_the_headline_compares_the_federated_model_with_the_best_local_only_baseline(record: RunRecord) -> None:
    compared = "68.4 % for the best local-only baseline (clinic-north) and 6.1 % for the base model"
    assert headline(record) == (
        f"The federated model has accuracy 76.3 %, against {compared}. Round 6 is the best of 6 rounds: its adapter is the result."
    )


def test_without_a_comparison_the_headline_is_the_newest_round(record: RunRecord) -> None:
    half = replace(record, comparison=None, evaluations={round_: record.evaluations[round_] for round_ in (0, 1)})
    assert headline(half) == "After round 1 the federated model has accuracy 39.5 %, against 6.1 % for the base model."


def test_a_round_has_its_quorum_seconds_bytes_and_largest_truncated_energy(record: RunRecord) -> None:
    row = round_rows(record)[2]
    assert (row.round, row.updates, row.selected, row.needed) == (3, 2, 3, 2)
    assert row.seconds == 52.0
    assert row.uploaded == sum(plan.forecast.upload_bytes for plan in record.plans[3].plans.values())
    assert row.truncated == max(record.rounds[3].truncated_energy.values())
    assert total_seconds(record) == 6 * 52.0


def test_an_absent_site_has_one_row_with_all_its_rounds(record: RunRecord) -> None:
    assert left_out(record) == [
        LeftOut("kiosk-west", "planning of rounds 1–6", record.plans[1].excluded["kiosk-west"]),
        LeftOut("practice-south", "training of round 3", "refused, NotFinite: lora_B has NaN."),
    ]


def test_a_site_whose_trainer_failed_is_left_out_with_the_trainers_reason(record: RunRecord) -> None:
    commit = record.rounds[3].model_copy(update={"refused": {}})
    failure = Failure(reason=FailureReason.OUT_OF_MEMORY, message="batch 1 does not fit.")
    failed = record.updates[3]["practice-south"].model_copy(update={"outcome": Outcome.FAILED, "failure": failure})
    changed = replace(record, rounds={3: commit}, updates={3: {"practice-south": failed}})
    assert LeftOut("practice-south", "training of round 3", "OutOfMemory: batch 1 does not fit.") in left_out(changed)


def test_a_site_without_an_update_is_left_out_with_the_reason_of_the_status_or_a_default(record: RunRecord) -> None:
    silent = replace(record, rounds={3: record.rounds[3].model_copy(update={"refused": {}})}, updates={})
    assert LeftOut("practice-south", "training of round 3", NO_UPDATE) in left_out(silent)
    reasons = {"leftOut": {"practice-south": "killed twice"}}
    row = {"round": 3, "updates": "2 of 3", "seconds": 1.0, "uploadedBytes": 0, "truncatedEnergy": 0.0} | reasons
    assert LeftOut("practice-south", "training of round 3", "killed twice") in left_out(with_status(silent, history=[row]))


def test_a_site_missing_from_an_evaluation_is_named(record: RunRecord) -> None:
    incomplete = record.evaluations[2].model_copy(update={"missing": {"clinic-north": "the deadline passed"}})
    changed = replace(record, evaluations=record.evaluations | {2: incomplete})
    assert LeftOut("clinic-north", "evaluation of round 2", "the deadline passed") in left_out(changed)


def test_sites_without_a_plan_come_last(record: RunRecord) -> None:
    assert [row.site for row in site_rows(record)] == ["clinic-north", "hospital-east", "practice-south", "kiosk-west"]
    assert [(row.ranks, row.adapters) for row in site_rows(record)] == [("16 to 32", 48), ("8 to 16", 48), ("4 to 8", 32), ("none", 0)]


def test_samples_and_headline_are_of_the_exported_round_also_where_a_later_one_was_worse(record: RunRecord) -> None:
    answers = {round_: {"a": a_site_evaluation("a", round_, answer=f"of round {round_}")} for round_ in (0, 1, 2, 3)}
    accuracy = {0: 0.9, 1: 0.3, 2: 0.5, 3: 0.4}
    rounds = {round_: evaluated(round_, accuracy=value) for round_, value in accuracy.items()}
    shown = replace(record, comparison=None, evaluations=rounds, site_evaluations=answers)

    assert [(site, sample.predicted) for site, sample in shown_samples(shown)] == [("a", "of round 2")]
    assert headline(shown) == (
        "After round 2 the federated model has accuracy 50.0 %, against 90.0 % for the base model."
        " Round 2 is the best of 3 rounds: its adapter is the result."
    )


def test_the_base_models_answers_are_never_shown_as_those_of_the_run(record: RunRecord) -> None:
    unfinished = replace(record, evaluations={0: record.evaluations[0]}, site_evaluations={0: record.site_evaluations[ROUNDS]})

    assert shown_samples(unfinished) == []


def test_the_shown_documents_are_in_order_of_the_sites(record: RunRecord) -> None:
    answers = {ROUNDS: dict(reversed(record.site_evaluations[ROUNDS].items()))}

    shown = shown_samples(replace(record, site_evaluations=answers))

    assert [site for site, _ in shown] == [site for site in record.sites[:3] for _ in range(2)]


def test_a_sites_share_is_the_mean_over_the_rounds_that_aggregated_its_updates(record: RunRecord) -> None:
    rows = {row.site: row for row in contribution_rows(record)}

    assert {site: row.rounds for site, row in rows.items()} == {"clinic-north": 6, "hospital-east": 6, "practice-south": 5}
    assert rows["practice-south"].share == pytest.approx(655 / (3180 + 1712 + 655))
    assert (rows["clinic-north"].steps, rows["practice-south"].steps) == (240, 200)
    assert rows["clinic-north"].alignment is None


def test_shortened_increments_are_counted_over_the_rounds_with_the_smallest_factor(record: RunRecord) -> None:
    first, *others = record.rounds[1].contributions
    clipped = first.model_copy(update={"clipped": 2, "smallest_clip": 0.1})
    rounds = {
        1: record.rounds[1].model_copy(update={"contributions": (clipped, *others)}),
        2: record.rounds[2].model_copy(update={"contributions": (clipped.model_copy(update={"smallest_clip": 0.3}), *others)}),
    }

    rows = {row.site: row for row in contribution_rows(replace(record, rounds=rounds))}

    assert (rows[first.site].clipped, rows[first.site].smallest_clip) == (4, 0.1)
    assert {(rows[one.site].clipped, rows[one.site].smallest_clip) for one in others} == {(0, 1.0)}


def with_dropped_rows(record: RunRecord) -> RunRecord:
    """Clinic-north dropped other rows in the first round than in the last, and some in the last evaluation."""

    def dropping(round_: int, rows: int) -> RoundCommit:
        commit = record.rounds[round_]
        of_site = (one.model_copy(update={"dropped_rows": rows * (one.site == "clinic-north")}) for one in commit.contributions)
        return commit.model_copy(update={"contributions": tuple(of_site)})

    last = record.evaluations[ROUNDS]
    sites = last.sites | {"clinic-north": last.sites["clinic-north"].model_copy(update={"dropped_rows": 5})}
    evaluations = dict(record.evaluations) | {ROUNDS: last.model_copy(update={"sites": sites})}
    return replace(record, rounds=dict(record.rounds) | {1: dropping(1, 9), ROUNDS: dropping(ROUNDS, 30)}, evaluations=evaluations)


def test_the_rows_that_a_site_dropped_are_those_of_its_last_update_and_evaluation(record: RunRecord) -> None:
    rows = {row.site: row.dropped_rows for row in site_rows(with_dropped_rows(record))}

    assert rows == {site: 35 if site == "clinic-north" else 0 for site in record.sites}
    page = write_report(with_dropped_rows(record))
    assert page.count("(35 rows dropped: fewer than two sites have their label)") == page.count("rows dropped") == 1


def test_a_site_whose_update_the_rule_did_not_select_is_left_out_of_the_round(record: RunRecord) -> None:
    first, *others = record.rounds[1].contributions
    changes = {"rule": "Krum", "contributions": (first.model_copy(update={"share": 0.0}), *others)}

    rows = left_out(replace(record, rounds=record.rounds | {1: record.rounds[1].model_copy(update=changes)}))

    assert LeftOut(first.site, "training of round 1", "NotSelected: aggregation.rule Krum left the update out") in rows


def test_what_was_measured_at_a_site_is_told_and_the_rest_is_missing(record: RunRecord) -> None:
    site = record.sites[0]
    profile = record.profiles[site].model_copy(update={"up_bits_per_second": 9e7, "mfu": 0.4})
    update = record.updates[1][site].model_copy(update={"tokens": 900, "padded_tokens": 100})

    row = measured_rows(replace(record, profiles={site: profile}, updates={1: {site: update}}))[0]

    assert (row.site, row.up, row.mfu, row.padding) == (site, 9e7, 0.4, 0.1)
    assert (row.down, row.memory_bandwidth, row.tokens_per_joule, row.granularity) == (None, None, None, None)


def test_how_well_the_trainings_of_a_site_used_it_is_a_mean_over_those_that_measured_it_and_a_sum_of_bytes(record: RunRecord) -> None:
    site, other = record.sites[:2]
    used = Measured(seconds={"train": 60.0, "transfer": 2.0}, uploaded_bytes=100, downloaded_bytes=400)
    changes = {"measured": used, "tokens": 900, "padded_tokens": 100, "tokens_per_second": 90.0, "mfu": 0.2, "steps": 5}
    energy = {"energy_joules": 450.0, "energy_source": EnergySource.RAPL}
    first, second = record.updates[1][site], record.updates[2][site]
    encoded = {"codecs": {"Int8": 1, "Int4": 6}, "update_cosine": 0.99}
    failed = record.updates[1][other].model_copy(update={"outcome": Outcome.FAILED})
    updates = {
        1: {site: first.model_copy(update=changes | energy), other: failed},
        2: {site: second.model_copy(update=changes | {"tokens_per_second": 110.0, "mfu": None} | encoded)},
    }

    (row,) = training_rows(replace(record, updates=updates))

    assert (row.site, row.trainings, row.tokens_per_second, row.mfu) == (site, 2, 100.0, 0.2)
    assert row.padded_tokens_per_second == pytest.approx(100 / 0.9)
    assert (row.tokens_per_joule, row.energy_source) == (2.0, "RAPL")
    assert (row.granularity, row.bits_per_second, row.uploaded, row.downloaded) == (30.0, 2000.0, 200, 800)
    assert (row.codecs, row.update_cosine) == ("6 Int4, 1 Int8", 0.99)


def test_granularity_needs_both_measured_bandwidths(record: RunRecord) -> None:
    link = {"up_bits_per_second": 9e7, "down_bits_per_second": 9e8}
    profile = record.profiles[record.sites[0]].model_copy(
        update={"base": SMOLLM2, "throughput": (point(bits=16, batch=8),), "mean_tokens": 50.0} | link
    )

    row = measured_rows(replace(record, profiles={record.sites[0]: profile}))[0]

    assert row.granularity == granularity(profile, up=9e7, down=9e8)


def test_what_was_learned_in_a_weight_is_summed_over_the_rounds(record: RunRecord) -> None:
    rounds = {
        1: record.rounds[1].model_copy(update={"learned": {"q": 1.0}}),
        2: record.rounds[2].model_copy(update={"learned": {"q": 2.0, "v": 0.5}}),
    }

    assert learned(replace(record, rounds=rounds)) == {"q": 3.0, "v": 0.5}


def test_the_alignment_is_the_mean_over_the_rounds_that_measured_it(record: RunRecord) -> None:
    measured = {1: 0.5, 2: None, 3: 0.9}
    rounds = {
        round_: record.rounds[round_].model_copy(
            update={"contributions": tuple(aligned(part, alignment) for part in record.rounds[round_].contributions)}
        )
        for round_, alignment in measured.items()
    }

    assert contribution_rows(replace(record, rounds=rounds))[0].alignment == pytest.approx(0.7)


def test_estimated_changes_of_the_loss_are_added_and_losses_without_the_site_averaged(record: RunRecord) -> None:
    evaluations = {
        round_: record.evaluations[round_].model_copy(
            update={"loss": loss, "first_order_estimates": {"clinic-north": LossEstimate(change=change, loss_without=without)}}
        )
        for round_, loss, change, without in ((1, 2.0, -0.5, 2.5), (2, 1.0, 0.125, 0.875))
    }

    rows = contribution_rows(replace(record, evaluations=record.evaluations | evaluations))

    assert (rows[0].loss_change, rows[0].loss, rows[0].loss_without) == (-0.375, 1.5, 1.6875)
    assert (rows[1].loss_change, rows[1].loss, rows[1].loss_without) == (None, None, None)


def test_a_loss_without_the_site_that_an_earlier_version_wrote_is_not_shown(record: RunRecord) -> None:
    """It told how the loss would have changed with the others in the site's place, which made sites look harmful."""
    old = LossEstimate(change=-0.5, loss_without=1.75)
    evaluations = {1: record.evaluations[1].model_copy(update={"loss": 2.0, "first_order_estimates": {"clinic-north": old}})}

    assert contribution_rows(replace(record, evaluations=evaluations))[0].loss_without == 2.5


def aligned(part: Contribution, alignment: float | None) -> Contribution:
    return part.model_copy(update={"alignment": alignment})


def test_a_batch_in_several_passes_and_savings_are_named(record: RunRecord) -> None:
    plan = record.plans[6]
    changes = {"micro_batch_size": 3, "lowest_layer": 4, "gradient_checkpointing": True, "cache_activations": True}
    plans = {"clinic-north": plan.plans["clinic-north"].model_copy(update=changes), "hospital-east": plan.plans["hospital-east"]}

    rows = {row.site: row for row in site_rows(replace(record, plans={6: plan.model_copy(update={"plans": plans})}))}

    assert (rows["clinic-north"].batch, rows["clinic-north"].layers) == ("8 (3 × 3)", "4 and up, checkpointing, cached")
    assert (rows["hospital-east"].batch, rows["hospital-east"].layers) == ("4", "all")


def test_who_taught_a_weight_is_weighted_by_what_each_round_learned(record: RunRecord) -> None:
    rounds = {
        1: record.rounds[1].model_copy(update={"learned": {"q": 1.0}, "learned_by": {"q": {"a": 0.9, "b": 0.1}}}),
        2: record.rounds[2].model_copy(update={"learned": {"q": 3.0, "v": 0.5}, "learned_by": {"q": {"b": 0.5, "c": 0.3, "d": 0.2}}}),
        3: record.rounds[3].model_copy(update={"learned": {"q": 3.0}, "learned_by": {}}),
    }

    assert learned_by(replace(record, rounds=rounds)) == {"q": "b 40.0 %, a 22.5 %, c 22.5 %"}
    assert learned_by(record) == {}
