"""Updates that travel encoded: what the gate accepts, what is made of them, and that others notice nothing of a codec."""

import io
import random
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any, Final

import numpy as np
import pytest
from hostile_site import faulty_adapter
from safetensors.numpy import load, save
from stand_in_runs import World, a_run
from toy_rounds import HEAD, Fleet, RecordingSource

from fedpipe_operator import names
from fedpipe_operator.admission import AdmittedUpdate
from fedpipe_operator.aggregation import AggregationConfig, Candidate, RoundInput, aggregate_round
from fedpipe_operator.aggregation.encoded import open_update, shapes_of, write_encoded
from fedpipe_operator.aggregation.gate import Expected, check, max_adapter_bytes
from fedpipe_operator.aggregation.tensors import open_tensors
from fedpipe_operator.api import CodecType
from fedpipe_operator.rounds.records import RoundCommit, RoundPlan, Verdict
from fedpipe_operator.store.objects import required_object
from fedpipe_trainer.codecs import CODECS, Part, Shape, update_codecs
from fedpipe_trainer.codecs.codec import Array, Float32
from fedpipe_trainer.codecs.encoding import Fidelity
from fedpipe_trainer.codecs.files import decode_whole
from fedpipe_trainer.compression import Weight, compress
from fedpipe_trainer.contract import Codec

CONFIG: Final = AggregationConfig(method="Exact", max_rank=64)
Q_A, Q_B = "base_model.model.layer.0.q.lora_A.weight", "base_model.model.layer.0.q.lora_B.weight"
LOOSE: Final = {"min_cosine": -1.0, "max_relative_error": 10.0}
"""Bounds that every codec keeps to, so that it is the one that is used."""


def planned(fleet: Fleet, codec: Codec | None) -> RoundPlan:
    return fleet.plan().model_copy(update={"codec": codec})


def weights_of(fleet: Fleet, site: str) -> list[Weight]:
    plan = fleet.plan().plans[site]
    return [Weight(name, plan.scale(name)) for name, rank in plan.ranks.items() if rank]


def arrays_of(fleet: Fleet, site: str, codec: Codec, tensors: Mapping[str, Any] | None = None) -> dict[str, Any]:
    """The update of a site that started from nothing, as it travels."""
    return dict(compress(tensors or fleet.tensors(site), {}, codec, weights=weights_of(fleet, site)).arrays)


def a_candidate(fleet: Fleet, site: str, arrays: Mapping[str, Any]) -> Candidate:
    data = save(dict(arrays), metadata={"format": "pt"})
    return Candidate(AdmittedUpdate(fleet.result(site, data)), RecordingSource(data))


def verdict(fleet: Fleet, codec: Codec | None, arrays: Mapping[str, Any]) -> Verdict:
    candidate = a_candidate(fleet, "alpha", arrays)
    return check(candidate.result, candidate.source, Expected(planned(fleet, codec), "alpha", max_norm=1e4))


def aggregated(fleet: Fleet, codec: Codec | None, candidates: Mapping[str, Candidate]) -> tuple[RoundCommit, dict[str, Any]]:
    sink = io.BytesIO()
    result = aggregate_round(RoundInput(planned(fleet, codec), candidates), CONFIG, sink)
    assert result.commit is not None, result.verdicts
    return result.commit, load(sink.getvalue())


def product(tensors: Mapping[str, Any]) -> Any:
    return tensors[Q_B].astype(np.float64) @ tensors[Q_A]


@pytest.mark.parametrize("name", CODECS)
def test_the_gate_accepts_what_a_site_encodes(fleet: Fleet, name: str) -> None:
    codec = Codec(type=name, rank=1, **LOOSE)
    arrays = arrays_of(fleet, "alpha", codec)

    assert any(f".{name}." in key for key in arrays)
    assert verdict(fleet, codec, arrays).accepted
    assert len(save(arrays, metadata={"format": "pt"})) <= max_adapter_bytes(planned(fleet, codec), "alpha")


def test_the_gate_accepts_a_better_codec_for_each_tensor_and_no_worse_one(fleet: Fleet) -> None:
    tensors, codec = fleet.tensors("alpha"), Codec(type="Int8", **LOOSE)
    better = arrays_of(fleet, "alpha", Codec(type="Float16", **LOOSE)) | {HEAD: tensors[HEAD]}
    del better[f"{HEAD}.Float16.values"]
    worse = arrays_of(fleet, "alpha", Codec(type="Int4", **LOOSE))

    assert verdict(fleet, codec, better).accepted
    assert verdict(fleet, codec, tensors).accepted, "as they are"
    assert verdict(fleet, codec, worse).reason == "UnknownKey"
    assert verdict(fleet, None, better).reason == "UnknownKey", "the round has no codec"


def test_without_a_codec_and_with_one_that_is_not_used_the_bytes_are_the_same(fleet: Fleet) -> None:
    plain = {site: fleet.candidate(site) for site in fleet.ranks}

    without = aggregated(fleet, None, plain)
    sink_of_identity = aggregated(fleet, Codec(type="Identity", downlink="Float16"), plain)
    as_they_are = aggregated(fleet, Codec(type="Int4"), plain)

    assert without[0].adapter == sink_of_identity[0].adapter == as_they_are[0].adapter


CHANGES: Final[dict[str, Any]] = {
    "UnknownKey": lambda arrays: arrays | {"base_model.model.layer.0.q.lora_A.weight": np.zeros((4, 10), np.float32)},
    "MissingKey": lambda arrays: {key: array for key, array in arrays.items() if key != f"{Q_A}.Int4.scales"},
    "WrongShape": lambda arrays: arrays | {f"{Q_A}.Int4.scales": np.zeros(2, np.float32)},
    "WrongDtype": lambda arrays: arrays | {f"{Q_A}.Int4.scales": np.zeros(1, np.int32)},
    "NotFinite": lambda arrays: arrays | {f"{Q_A}.Int4.scales": np.full(1, np.nan, np.float32)},
    "NormTooLarge": lambda arrays: arrays | {f"{HEAD}.Int4.scales": np.full(1, 1e30, np.float32)},
}


@pytest.mark.parametrize("reason", CHANGES)
def test_an_encoded_update_is_refused_for_the_reason_that_a_plain_one_is(fleet: Fleet, reason: str) -> None:
    codec = Codec(type="Int4", **LOOSE)

    found = verdict(fleet, codec, CHANGES[reason](arrays_of(fleet, "alpha", codec)))

    assert (found.accepted, found.reason) == (False, "UnknownKey" if reason == "MissingKey" else reason)
    assert "adapter of site alpha" in found.message


def test_positions_that_no_site_sends_are_malformed(fleet: Fleet) -> None:
    codec = Codec(type="TopK", fraction=0.2, **LOOSE)
    arrays = arrays_of(fleet, "alpha", codec)
    arrays[f"{Q_A}.TopK.positions"] = arrays[f"{Q_A}.TopK.positions"][::-1].copy()

    found = verdict(fleet, codec, arrays)

    assert (found.reason, found.message) == (
        "Malformed",
        f"adapter of site alpha: tensor {Q_A}: its positions do not ascend within the tensor",
    )


@pytest.mark.parametrize("name", CODECS)
def test_whatever_the_bytes_of_an_encoded_update_are_the_gate_has_a_verdict(fleet: Fleet, name: str) -> None:
    codec = Codec(type=name, rank=1, fraction=0.1, **LOOSE)
    data = save(arrays_of(fleet, "alpha", codec), metadata={"format": "pt"})
    refused = 0
    for seed in range(150):
        changed = faulty_adapter(data, random.Random(seed))  # noqa: S311 -- faults, no secrets
        found = check(fleet.result("alpha", changed), RecordingSource(changed), Expected(planned(fleet, codec), "alpha", max_norm=1e4))  # type: ignore[arg-type]  # as if it was admitted
        refused += not found.accepted
        assert found.accepted or (found.reason and "cannot be checked" not in found.message), (seed, found)

    assert refused > 30


def test_a_round_of_8_bits_is_close_to_the_round_as_it_is(fleet: Fleet) -> None:
    codec = Codec(type="Int8")

    plain, exact = aggregated(fleet, None, {site: fleet.candidate(site) for site in fleet.ranks})
    commit, close = aggregated(fleet, codec, {site: a_candidate(fleet, site, arrays_of(fleet, site, codec)) for site in fleet.ranks})

    assert Fidelity.of(np.float32(product(exact)), np.float32(product(close))).relative_error < 0.02
    assert [one.share for one in commit.contributions] == [one.share for one in plain.contributions]


def test_an_increment_is_added_to_the_global_adapter_that_the_operator_has(fleet: Fleet) -> None:
    """The site started from a copy of 16 bits: what it learned beside that is what counts."""
    _, first = aggregated(fleet, None, {site: fleet.candidate(site) for site in fleet.ranks})
    second, codec = fleet.next_round(), Codec(type="Float16", downlink="Float16")
    plan, scale = planned(second, codec), fleet.plan().plans["beta"].scale("layer.0.q")
    copy = {key: array.astype(np.float16).astype(np.float32) for key, array in first.items()}
    start = {Q_A: copy[Q_A][:2], Q_B: copy[Q_B][:, :2] / scale, HEAD: copy[HEAD]}
    learned = {key: 1e-3 * np.random.default_rng(5).standard_normal(value.shape).astype(np.float32) for key, value in start.items()}
    sent = {key: (start[key] + learned[key]).astype(np.float32) for key in start}
    arrays = compress(sent, {key: np.float32(one) for key, one in start.items()}, codec, weights=[Weight("layer.0.q", scale)]).arrays

    previous = open_tensors(RecordingSource(save(first)))
    update = open_update(open_tensors(RecordingSource(save(dict(arrays)))), plan, "beta", {"layer.0.q": scale}, previous)

    np.testing.assert_allclose(update.read(Q_A) - first[Q_A][:2], learned[Q_A], atol=2e-6)
    np.testing.assert_allclose(update.read(Q_B) - first[Q_B][:, :2] / np.float32(scale), learned[Q_B], atol=2e-6)
    np.testing.assert_allclose(update.read(HEAD) - first[HEAD], learned[HEAD], atol=2e-6)


@pytest.mark.parametrize("type_", ["Identity", "Int8"])
def test_the_error_of_the_copy_that_a_site_reads_is_no_part_of_what_it_learned(fleet: Fleet, type_: str) -> None:
    """A site that learned nothing changes nothing, round by round, however inexact its copy of the global adapter is."""
    _, first = aggregated(fleet, None, {site: fleet.candidate(site) for site in fleet.ranks})
    second, codec = fleet.next_round(), Codec(type=type_, downlink="Int8")
    sink = io.BytesIO()
    write_encoded(open_tensors(RecordingSource(save(first))), codec, "encoded", sink)
    copy, arrays = decode_whole(load(sink.getvalue())), {}
    for site in fleet.ranks:
        start = {}
        for key in second.tensors(site):
            weight = next((one for one in weights_of(fleet, site) if key in one.keys), None)
            part = copy[key] if weight is None else copy[key][: fleet.ranks[site][weight.name]] if "lora_A" in key else copy[key]
            start[key] = part if "lora_B" not in key else part[:, : fleet.ranks[site][weight.name]] / np.float32(weight.scale)  # type: ignore[union-attr]  # a factor
        arrays[site] = compress(start, start, codec, weights=weights_of(fleet, site)).arrays

    round_input = RoundInput(planned(second, codec), {site: a_candidate(second, site, one) for site, one in arrays.items()})
    sink = io.BytesIO()
    result = aggregate_round(replace(round_input, previous=RecordingSource(save(first))), CONFIG, sink)

    assert result.commit is not None
    after = load(sink.getvalue())
    np.testing.assert_allclose(product(after), product(first), atol=1e-5 * np.linalg.norm(product(first)))
    np.testing.assert_allclose(after[HEAD], first[HEAD], atol=1e-6)


def test_components_that_the_global_adapter_does_not_have_start_at_zero(fleet: Fleet) -> None:
    narrow = fleet.tensors("gamma")  # of rank 1
    second, codec = fleet.next_round(), Codec(type="Float16")
    sent, scale = second.tensors("alpha"), fleet.plan().plans["alpha"].scale("layer.0.q")
    start = {key: np.zeros_like(sent[key]) for key in (Q_A, Q_B)}
    start[Q_A][:1], start[Q_B][:, :1] = narrow[Q_A], narrow[Q_B] / np.float32(scale)
    arrays = compress(sent, start, codec, weights=weights_of(fleet, "alpha")).arrays

    scales = {"layer.0.q": scale, "layer.0.v": fleet.plan().plans["alpha"].scale("layer.0.v")}
    previous = open_tensors(RecordingSource(save({Q_A: narrow[Q_A], Q_B: narrow[Q_B], HEAD: np.zeros((3, 10), np.float32)})))
    update = open_update(open_tensors(RecordingSource(save(dict(arrays)))), planned(second, codec), "alpha", scales, previous)

    for key in sent:
        np.testing.assert_allclose(update.read(key), sent[key], atol=2e-3)


@pytest.mark.parametrize(("downlink", "share"), [("Float16", 0.55), ("Int8", 0.3)])
def test_the_sites_read_fewer_bytes_than_the_global_adapter_has(downlink: str, share: float) -> None:
    tensors = {f"w{index}": np.random.default_rng(index).standard_normal((16, 400)).astype(np.float32) for index in range(4)}
    data, sink = save(tensors), io.BytesIO()

    artifact = write_encoded(open_tensors(RecordingSource(data)), Codec(downlink=downlink), "encoded", sink)

    assert artifact.size == len(sink.getvalue()) < share * len(data)
    decoded = decode_whole(load(sink.getvalue()))
    assert decoded.keys() == tensors.keys()
    assert all(Fidelity.of(tensors[key], decoded[key]).relative_error < 0.02 for key in tensors)


def test_a_global_tensor_that_loses_too_much_travels_as_it_is() -> None:
    tensors, sink = {"w": np.full((4, 4), 1e6, np.float32)}, io.BytesIO()

    write_encoded(open_tensors(RecordingSource(save(tensors))), Codec(downlink="Float16"), "encoded", sink)

    assert (load(sink.getvalue())["w"] == tensors["w"]).all()


# --- whole runs


@pytest.mark.parametrize("codec", [{"type": "Int8", "downlink": "Float16"}, {"type": "TopK", "fraction": 0.3}, {"downlink": "Int8"}])
def test_an_operator_restarted_at_every_reconcile_ends_with_the_same_bytes(tmp_path: Path, codec: dict[str, Any]) -> None:
    undisturbed, disturbed = World(a_run(codec=codec), tmp_path / "one"), World(a_run(codec=codec), tmp_path / "two")
    undisturbed.settle()

    disturbed.settle_with_restarts()

    assert disturbed.final_adapter() == undisturbed.final_adapter()
    commit = required_object(undisturbed.store, names.round_commit(1), RoundCommit)
    assert (commit.download is not None) == ("downlink" in codec)
    assert not commit.refused


def test_an_edit_of_the_codec_changes_no_round_that_has_begun(tmp_path: Path) -> None:
    world = World(a_run(codec={"type": "Int8"}), tmp_path)
    world.work_until("aggregate-r1")

    spec = world.run.spec.model_copy(update={"codec": world.run.spec.codec.model_copy(update={"type": CodecType.IDENTITY})})
    world.run = replace(world.run, resource=world.run.resource.model_copy(update={"spec": spec}))
    world.settle()

    plans = [required_object(world.store, names.round_plan(round_), RoundPlan) for round_ in (1, 2)]
    assert [plan.codec and plan.codec.type for plan in plans] == ["Int8", None]
    assert "Complete" in world.conditions()


class Doubled:
    """A codec of its own: a tensor as twice its values. It touches nothing but its entry in the table."""

    name = "Doubled"

    def parts(self, shape: Shape) -> Mapping[str, Part]:
        return {"twice": Part("F32", shape)}

    def encode(self, values: Float32) -> Mapping[str, Array]:
        return {"twice": 2 * values}

    def decode(self, parts: Mapping[str, Array], shape: Shape) -> Float32:
        return np.asarray(parts["twice"] / 2, np.float32).reshape(shape)


def test_a_new_codec_is_an_entry_in_the_table_and_touches_nothing_else(fleet: Fleet, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(CODECS, "Doubled", lambda _: Doubled())
    codec = Codec(type="Doubled")
    arrays = {site: arrays_of(fleet, site, codec) for site in fleet.ranks}

    assert all(key.endswith(".Doubled.twice") for one in arrays.values() for key in one)
    assert [one.name for one in update_codecs(codec)] == ["Doubled"]
    commit, _ = aggregated(fleet, codec, {site: a_candidate(fleet, site, one) for site, one in arrays.items()})
    plain, _ = aggregated(fleet, None, {site: fleet.candidate(site) for site in fleet.ranks})
    assert commit.adapter == plain.adapter
    assert shapes_of(planned(fleet, codec), "beta") == {HEAD: (3, 10), Q_A: (2, 10), Q_B: (12, 2)}
