"""A site's claims combined with its profile."""

import pytest
from site_profiles import FINGERPRINT, GIB, SMOLLM2

from fedpipe_operator.api import EdgeSite
from fedpipe_operator.sites import site_profile
from fedpipe_trainer.contract import Failure, FailureReason, Measured, Outcome, ProfileResult, RunRef

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


def test_memory_that_is_not_claimed_is_what_was_measured() -> None:
    assert site_profile(claiming(), a_profile()).memory_bytes == 4 * GIB


def test_memory_that_was_not_measured_is_what_is_claimed() -> None:
    assert site_profile(claiming(memory="2Gi"), a_profile(memory_bytes=0)).memory_bytes == 2 * GIB


def test_an_accelerators_memory_is_used_where_the_profile_ran_on_a_gpu() -> None:
    claim = claiming(memory="2Gi", accelerator={"memory": "24Gi"})
    on_gpu = a_profile(measured=Measured(device="NVIDIA A10"), memory_bytes=23 * GIB)

    assert site_profile(claim, on_gpu).memory_bytes == 23 * GIB
    assert site_profile(claim, a_profile()).memory_bytes == 2 * GIB


def test_bandwidth_is_what_the_site_claims_in_bits_per_second() -> None:
    site = site_profile(claiming(bandwidth={"up": "10M", "down": "1G"}), a_profile())

    assert (site.up, site.down) == (10e6, 1e9)


def test_measurements_are_copied_from_the_profile() -> None:
    site = site_profile(claiming(), a_profile(labels=("a", "b"), load_seconds={4: 2.5}, unsupported={8: "no kernel"}, longest_tokens=77))

    assert (site.name, site.labels, site.mean_tokens, site.longest_tokens) == ("ward", ("a", "b"), 60.5, 77)
    assert site_profile(claiming(), a_profile(measured=Measured(seconds={"load": 9.5, "profile": 60.0}))).setup_seconds == 9.5
    assert (site.load_seconds, site.unsupported, site.base, site.fingerprint) == ({4: 2.5}, {8: "no kernel"}, SMOLLM2, FINGERPRINT)


def test_a_failed_profile_is_refused_with_its_reason() -> None:
    failed = a_profile(base=None, outcome=Outcome.FAILED, failure=Failure(reason=FailureReason.BAD_DATA, message="train.jsonl is empty"))

    with pytest.raises(ValueError, match=r"'ward' contains no facts about the base model: train\.jsonl is empty"):
        site_profile(claiming(), failed)


def test_the_profile_of_another_site_is_refused() -> None:
    with pytest.raises(ValueError, match="belongs to site 'clinic', not to 'ward'"):
        site_profile(claiming(), a_profile(site="clinic"))
