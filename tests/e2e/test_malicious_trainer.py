"""A malicious trainer image at one of three sites changes the outcome by no more than a site's share."""

import math
import os
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import pytest
from cluster_user import Plain
from fleet_namespace import FleetNamespace, OpenNamespace
from testcluster.layout import default_layout, node_named
from testcluster.substitution import substituted

from fedpipe_operator import names
from fedpipe_operator.aggregation.clipping import MULTIPLE
from fedpipe_operator.rounds.records import Contribution, RoundCommit, RoundEvaluation
from fedpipe_operator.store import S3Store
from fedpipe_operator.store.objects import required_object

pytestmark = [pytest.mark.e2e, pytest.mark.exclusive]

TRAINER: Final = Path(__file__).parents[1] / "helpers" / "malicious_trainer"
HONEST: Final = ("north", "south")
ONE_NODE: Final = {"fedpipe.io/pool": "small"}
"""Of the honest sites. The malicious one has the other node for itself."""
LARGEST_SHARE: Final = 0.5
"""Of one site among three, by default."""


@dataclass(frozen=True)
class Ended:
    """The run, complete."""

    body: Plain
    log: str
    """Of the malicious trainer's pods."""
    store: S3Store

    def commit(self, round_: int) -> RoundCommit:
        """Of this round."""
        return required_object(self.store, names.round_commit(round_), RoundCommit)

    def contributions(self, round_: int) -> dict[str, Contribution]:
        """By site."""
        return {one.site: one for one in self.commit(round_).contributions}


@pytest.fixture(scope="module")
def ended(open_namespace: OpenNamespace) -> Iterator[Ended]:
    """A run of two honest sites and a malicious one, which a quorum of two does without."""
    with (
        substituted(default_layout(), node_named("node-two"), os.environ["FEDPIPE_TRAINER_IMAGE"], TRAINER),
        open_namespace("e2e-malicious-trainer") as namespace,
    ):
        namespace.kubectl.apply(
            *(namespace.site(one, nodeSelector=ONE_NODE) for one in HONEST),
            namespace.site("west"),
            # No export: its Job is none of a site, and the scheduler may choose the malicious node for it (docs/security.md).
            namespace.run(sites={"quorum": 0.6}, export={"adapter": False, "merged": False}),
        )
        body = namespace.wait_until_complete()
        yield Ended(body, log_of(namespace, "west"), namespace.store_of(body))


def log_of(namespace: FleetNamespace, site: str) -> str:
    return namespace.kubectl("logs", f"--selector=fedpipe.io/site={site}", "--tail=-1")


def test_the_trainer_was_malicious(ended: Ended) -> None:
    assert "malicious trainer: wrote to north" in ended.log


def test_no_site_writes_to_another(ended: Ended) -> None:
    assert {line.rpartition(" ")[2] for line in ended.log.splitlines() if "malicious trainer" in line} == {"403"}


def test_impossible_samples_cost_their_sender_the_round_and_nobody_else(ended: Ended) -> None:
    assert {site: verdict.reason for site, verdict in ended.commit(1).refused.items()} == {"west": "WrongSteps"}
    assert ended.contributions(1).keys() == set(HONEST)


def test_a_thousand_times_the_samples_are_no_more_than_the_largest_share(ended: Ended) -> None:
    found = ended.contributions(2)

    assert found.keys() == {*HONEST, "west"}
    assert found["west"].share == pytest.approx(LARGEST_SHARE)


def test_increments_of_any_length_move_the_global_model_no_further_than_clipped_ones(ended: Ended) -> None:
    found, commit = ended.contributions(2), ended.commit(2)
    # Of three lengths of a weight's increment with one that is huge, the median is the longer one of the other two.
    longest_usual = math.hypot(*(found[site].norm for site in HONEST))

    assert found["west"].smallest_clip < 1 / 50
    assert [found[site].clipped for site in HONEST] == [0, 0]
    assert math.hypot(*commit.learned.values()) <= (1 - LARGEST_SHARE + LARGEST_SHARE * MULTIPLE) * longest_usual


def test_no_evaluation_counts_that_a_site_cannot_have_made(ended: Ended) -> None:
    for round_ in (0, 1, 2):
        evaluation = required_object(ended.store, names.round_evaluation(round_), RoundEvaluation)
        assert evaluation.sites.keys() == set(HONEST)
        assert "Implausible" in evaluation.missing["west"]


def test_the_status_names_who_was_refused_and_why(ended: Ended) -> None:
    first = ended.body["status"]["history"][0]

    assert first["updates"] == "2/3"
    assert first["leftOut"]["west"].startswith("WrongSteps: ")
