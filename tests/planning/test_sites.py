"""A site's claims combined with its profile."""

import json
from typing import Any

import pytest
from site_profiles import FINGERPRINT, GIB, SMOLLM2

from fedpipe_operator.api import EdgeSite
from fedpipe_operator.api.parse import read_documents
from fedpipe_operator.sites import basis_of, granularity, site_granularity, site_profile
from fedpipe_trainer.contract import (
    Failure,
    FailureReason,
    Importance,
    ImportanceMethod,
    Measured,
    Outcome,
    ProfileResult,
    RunRef,
    Throughput,
    WeightShape,
)

DATA = {"train": "train.jsonl", "validation": "v.jsonl", "volume": {"persistentVolumeClaim": {"claimName": "notes"}}}


def claiming(**capacity: object) -> EdgeSite:
    return EdgeSite.model_validate({"metadata": {"name": "ward"}, "spec": {"data": DATA, "capacity": capacity}})


def a_profile(**changes: object) -> ProfileResult:
    fields = {
        "run": RunRef(namespace="default", name="notes", uid="u"),
        "site": "ward",
        "round": 0,
        "attempt": 0,
        "outcome": Outcome.COMPLETED,
        "fingerprint": FINGERPRINT,
        "measured": Measured(device="cpu"),
        "base": SMOLLM2,
        "memory_bytes": 4 * GIB,
        "mean_tokens": 60.5,
    }
    return ProfileResult.model_validate(fields | changes)


def test_of_claimed_and_measured_memory_the_smaller_is_used() -> None:
    assert site_profile(claiming(memory="2Gi"), a_profile()).memory_bytes == 2 * GIB
    assert site_profile(claiming(memory="64Gi"), a_profile()).memory_bytes == 4 * GIB


def test_a_claim_that_is_raised_after_the_profile_counts_up_to_what_the_device_has() -> None:
    profiled_under_a_claim = a_profile(memory_bytes=2 * GIB, device_memory_bytes=16 * GIB)

    assert site_profile(claiming(memory="8Gi"), profiled_under_a_claim).memory_bytes == 8 * GIB
    assert site_profile(claiming(memory="64Gi"), profiled_under_a_claim).memory_bytes == 16 * GIB


def test_memory_that_is_not_claimed_is_what_was_measured() -> None:
    assert site_profile(claiming(), a_profile()).memory_bytes == 4 * GIB


def test_memory_that_was_not_measured_is_what_is_claimed() -> None:
    assert site_profile(claiming(memory="2Gi"), a_profile(memory_bytes=0)).memory_bytes == 2 * GIB


def with_a_cache() -> EdgeSite:
    cache = {"persistentVolumeClaim": {"claimName": "cache"}}
    return EdgeSite.model_validate({"metadata": {"name": "ward"}, "spec": {"data": DATA, "cache": cache}})


def test_a_cache_counts_unless_the_profile_says_that_it_does_not_work() -> None:
    works, broken = (
        site_profile(with_a_cache(), a_profile()),
        site_profile(with_a_cache(), a_profile(cache_problem="it is full: free space")),
    )

    assert (works.has_cache, works.cache_problem) == (True, "")
    assert (broken.has_cache, broken.cache_problem) == (False, "it is full: free space")


def test_the_problem_of_a_cache_is_told_as_one_short_line_without_control_codes() -> None:
    site = site_profile(with_a_cache(), a_profile(cache_problem="it is\n\x1b[31mfull: " + 4000 * "x"))

    assert site.cache_problem.startswith("it is [31mfull: x")
    assert len(site.cache_problem) == 300


def test_a_cache_that_the_site_no_longer_has_is_no_problem() -> None:
    site = site_profile(claiming(), a_profile(cache_problem="it is full: free space"))

    assert (site.has_cache, site.cache_problem) == (False, "")


def test_an_accelerators_memory_is_used_where_the_profile_ran_on_a_gpu() -> None:
    claim = claiming(memory="2Gi", accelerator={"memory": "24Gi"})
    on_gpu = a_profile(measured=Measured(device="NVIDIA A10"), memory_bytes=23 * GIB)

    assert site_profile(claim, on_gpu).memory_bytes == 23 * GIB
    assert site_profile(claim, a_profile()).memory_bytes == 2 * GIB


@pytest.mark.parametrize(
    ("device", "capacity", "field"),
    [
        ("cpu", {"memory": "2Gi", "accelerator": {"memory": "24Gi"}}, "capacity.memory"),
        ("NVIDIA A10", {"memory": "2Gi", "accelerator": {"memory": "24Gi"}}, "capacity.accelerator.memory"),
        ("NVIDIA A10", {"memory": "2Gi"}, "capacity.memory"),
    ],
)
def test_a_site_knows_in_which_field_its_memory_is_claimed_and_what_its_device_has(
    device: str, capacity: dict[str, object], field: str
) -> None:
    profiled = a_profile(measured=Measured(device=device), memory_bytes=GIB, device_memory_bytes=16 * GIB)

    site = site_profile(claiming(**capacity), profiled)

    assert (site.memory_field, site.measured_memory) == (field, 16 * GIB)


def test_bandwidth_that_was_not_measured_is_what_the_site_claims_in_bits_per_second() -> None:
    site = site_profile(claiming(bandwidth={"up": "10M", "down": "1G"}), a_profile())

    assert (site.up, site.down) == (10e6, 1e9)


def test_of_claimed_and_measured_bandwidth_the_smaller_is_used() -> None:
    measured = a_profile(up_bits_per_second=3e6, down_bits_per_second=4e9)
    site = site_profile(claiming(bandwidth={"up": "10M", "down": "1G"}), measured)

    assert (site.up, site.down) == (3e6, 1e9)


def test_bandwidth_that_is_not_claimed_is_what_was_measured() -> None:
    site = site_profile(claiming(), a_profile(up_bits_per_second=9e8, down_bits_per_second=8e9))

    assert (site.up, site.down) == (9e8, 8e9)


def test_bandwidth_that_is_neither_claimed_nor_measured_is_assumed() -> None:
    site = site_profile(claiming(bandwidth={"up": "10M"}), a_profile())

    assert (site.up, site.down) == (10e6, 1e9)
    assert site_profile(claiming(), a_profile()).up == 100e6
    assert site.assumed == ("down",)
    assert site_profile(claiming(), a_profile()).assumed == ("up", "down")
    assert site_profile(claiming(), a_profile(up_bits_per_second=1e6, down_bits_per_second=1e6)).assumed == ()


@pytest.mark.parametrize(
    ("claims", "measured", "least"),
    [({}, 1e6, 0.0), ({"up": "10M"}, 100e6, 1.0), ({"up": "10M"}, 2e6, 0.2), ({"up": "10M", "down": "1M"}, 2e6, 1.0)],
)
def test_transfers_may_turn_out_as_fast_as_the_site_claims_at_most(claims: dict[str, str], measured: float, least: float) -> None:
    site = site_profile(claiming(bandwidth=claims), a_profile(up_bits_per_second=measured, down_bits_per_second=measured))

    assert site.least_transfer_factor == pytest.approx(least)


def test_a_claimed_bandwidth_of_zero_is_refused_with_what_to_write() -> None:
    document = {
        "apiVersion": "fedpipe.io/v1alpha1",
        "kind": "EdgeSite",
        "metadata": {"name": "ward"},
        "spec": {"data": DATA, "capacity": {"bandwidth": {"up": "0"}}},
    }
    (problem,) = read_documents(json.dumps(document), "site.yaml").problems

    assert str(problem).endswith(
        "spec.capacity.bandwidth.up: invalid format '0': write a number above 0 with an optional suffix, such as 24Gi, 500m or 8"
    )


def test_granularity_is_the_compute_of_a_round_over_its_transfers() -> None:
    base = SMOLLM2.model_copy(update={"weights": (WeightShape(name="q", d_out=60, d_in=40),), "head": {"score": (-1, 25)}})
    points = tuple(
        Throughput(
            bits=16,
            batch_size=8,
            length=64,
            tokens_per_second=speed,
            evaluate_tokens_per_second=900,
            peak_memory_bytes=0,
            lowest_layer=layer,
        )
        for speed, layer in ((250.0, 0), (500.0, 0), (900.0, 15))
    )
    profile = a_profile(base=base, labels=("a", "b"), rank=4, train_samples=100, mean_tokens=50.0, throughput=points)
    site = claiming(bandwidth={"up": "4500", "down": "9k"})

    compute = 100 * 50.0 / 500.0
    transfer = 32 * (4 * (60 + 40) + 2 * 25) * (1 / 4500 + 1 / 9000)
    assert site_granularity(site, profile) == pytest.approx(compute / transfer)
    assert granularity(profile, up=9000.0, down=18000.0) == pytest.approx(2 * compute / transfer)


def test_a_site_without_a_measured_step_has_no_granularity() -> None:
    assert site_granularity(claiming(), a_profile(throughput=())) is None
    assert site_granularity(claiming(), a_profile(base=None)) is None


def test_what_else_was_measured_is_copied() -> None:
    scores = Importance(method=ImportanceMethod.GRADIENT, samples=32, first_half={"q": 1.0}, second_half={"q": 2.0})
    measured = a_profile(first_step_seconds={16: 1.5}, importance=scores, out_of_memory={32: GIB})
    site = site_profile(claiming(), measured)

    assert (site.first_step_seconds, site.importance, site.out_of_memory) == ({16: 1.5}, scores, {32: GIB})


def test_a_site_has_the_devices_with_which_it_was_measured() -> None:
    assert (site_profile(claiming(), a_profile(processes=2)).devices, site_profile(claiming(), a_profile()).devices) == (2, 1)


def test_measurements_are_copied_from_the_profile() -> None:
    site = site_profile(claiming(), a_profile(labels=("a", "b"), load_seconds={4: 2.5}, unsupported={8: "no kernel"}, longest_tokens=77))

    assert (site.name, site.labels, site.mean_tokens, site.longest_tokens) == ("ward", ("a", "b"), 60.5, 77)
    assert site_profile(claiming(), a_profile(setup_seconds=9.5)).setup_seconds == 9.5
    assert (site.load_seconds, site.unsupported, site.base, site.fingerprint) == ({4: 2.5}, {8: "no kernel"}, SMOLLM2, FINGERPRINT)


def a_site_of(**spec: Any) -> EdgeSite:
    return EdgeSite.model_validate({"metadata": {"name": "ward-a"}, "spec": {"data": DATA, **spec}})


@pytest.mark.parametrize(
    "change",
    [
        {"nodeSelector": {"pool": "b"}},
        {"tolerations": [{"key": "gpu", "operator": "Exists"}]},
        {"data": DATA | {"train": "other.jsonl"}},
        {"capacity": {"cpu": "4"}},
        {"capacity": {"accelerator": {"memory": "24Gi", "count": 2}}},
        {"podTemplate": {"spec": {"affinity": {}}}},
    ],
    ids=lambda change: next(iter(change)),
)
def test_a_profile_is_made_for_a_node_pool_its_processors_and_the_data(change: dict[str, Any]) -> None:
    assert basis_of(a_site_of(**change)).measured != basis_of(a_site_of()).measured


def test_a_profile_is_made_for_a_cache_volume() -> None:
    volumes = [None, {"persistentVolumeClaim": {"claimName": "cache"}}, {"persistentVolumeClaim": {"claimName": "larger"}}]

    assert len({basis_of(a_site_of(cache=volume)).cache for volume in volumes}) == 3
    assert len({basis_of(a_site_of(cache=volume)).measured for volume in volumes}) == 1


@pytest.mark.parametrize(
    "change",
    [
        {"capacity": {"memory": "4Gi", "bandwidth": {"up": "1M"}}},
        {"maxConcurrentJobs": 2},
        {"podTemplate": {"labels": {"team": "a"}, "env": [{"name": "HTTPS_PROXY", "value": "http://proxy:3128"}]}},
        {"podTemplate": {"caConfigMap": {"name": "ca"}}},
    ],
    ids=lambda change: next(iter(change)),
)
def test_claims_and_limits_need_no_other_profile_unless_it_failed(change: dict[str, Any]) -> None:
    before, after = basis_of(a_site_of()), basis_of(a_site_of(**change))

    assert before.measured == after.measured
    assert before.whole != after.whole


def test_a_failed_profile_is_refused_with_its_reason() -> None:
    failed = a_profile(base=None, outcome=Outcome.FAILED, failure=Failure(reason=FailureReason.BAD_DATA, message="train.jsonl is empty"))

    with pytest.raises(ValueError, match=r"'ward' contains no facts about the base model: train\.jsonl is empty"):
        site_profile(claiming(), failed)


def test_the_profile_of_another_site_is_refused() -> None:
    with pytest.raises(ValueError, match="belongs to site 'clinic', not to 'ward'"):
        site_profile(claiming(), a_profile(site="clinic"))
