"""A run whose updates travel in 4 bits and whose global adapter in 16: what is in the store, what the status says, and what is exported."""

from collections.abc import Iterator

import pytest
from cluster_user import Plain
from fleet_namespace import FleetNamespace, OpenNamespace

from fedpipe_operator import names
from fedpipe_operator.aggregation.tensors import open_tensors
from fedpipe_operator.rounds.records import RoundCommit
from fedpipe_operator.store import S3Store
from fedpipe_operator.store.objects import required_object

pytestmark = pytest.mark.e2e


@pytest.fixture(scope="module")
def run_in(open_namespace: OpenNamespace) -> Iterator[tuple[FleetNamespace, Plain]]:
    """A complete run of two rounds over two sites."""
    with open_namespace("e2e-codecs") as namespace:
        namespace.start("north", "south", codec={"type": "Int4", "downlink": "Float16"}, export={"merged": False})
        yield namespace, namespace.wait_until_complete()


def commit_of(store: S3Store, round_: int) -> RoundCommit:
    return required_object(store, names.round_commit(round_), RoundCommit)


def keys_in(store: S3Store, key: str) -> set[str]:
    """Of the tensors in this file."""
    with store.open_reader(key) as source:
        return set(open_tensors(source).entries)


def test_both_sites_are_in_both_rounds_and_nothing_is_refused(run_in: tuple[FleetNamespace, Plain]) -> None:
    namespace, run = run_in
    store = namespace.store_of(run)

    for commit in (commit_of(store, 1), commit_of(store, 2)):
        assert [one.site for one in commit.contributions] == ["north", "south"]
        assert commit.refused == {}


def test_the_store_has_encoded_updates_and_the_global_adapter_in_both_forms(run_in: tuple[FleetNamespace, Plain]) -> None:
    namespace, run = run_in
    store = namespace.store_of(run)

    assert any(key.endswith(".Int4.pairs") for key in keys_in(store, names.update_adapter(2, "north", 0)))
    commit = commit_of(store, 1)
    assert commit.download is not None
    assert all(key.endswith(".Float16.values") for key in keys_in(store, commit.download.name))
    assert not any(".Float16." in key for key in keys_in(store, commit.adapter.name))
    assert commit.download.size < commit.adapter.size


def test_the_status_says_how_the_updates_travelled(run_in: tuple[FleetNamespace, Plain]) -> None:
    for site in run_in[1]["status"]["measured"]:
        assert site["codecs"]["Int4"] > 0
        assert 0.9 <= site["updateCosine"] <= 1


def test_the_export_has_no_encoded_tensors(run_in: tuple[FleetNamespace, Plain]) -> None:
    namespace, run = run_in

    keys = keys_in(namespace.store_of(run), f"{names.EXPORT_ADAPTER}/adapter_model.safetensors")

    assert keys
    assert not any(".Float16." in key or ".Int4." in key for key in keys)
