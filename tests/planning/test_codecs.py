"""Plans with a codec: the bytes are those of the file, and a slow uplink holds a site back less."""

import io
from typing import Any, Final

import numpy as np
import pytest
import safetensors.numpy
from site_profiles import MPNET, a_site, a_spec

from fedpipe_operator import conversion
from fedpipe_operator.aggregation.encoded import write_encoded
from fedpipe_operator.aggregation.tensors import factor_keys, open_tensors
from fedpipe_operator.api import CodecSpec
from fedpipe_operator.planning import plan_round
from fedpipe_operator.planning.sizes import element_bytes, global_file_bytes, uniform_ranks, update_bytes, update_file_bytes
from fedpipe_trainer.codecs import DTYPES, ladder
from fedpipe_trainer.codecs.files import nominal, parts_of
from fedpipe_trainer.contract import Codec, Plan

HEAD: Final = {"base_model.model.classifier.out_proj.weight": (20, 768), "base_model.model.classifier.dense.bias": (768,)}
CODECS: Final[dict[str, dict[str, Any]]] = {
    "Float16": {"type": "Float16"},
    "Int8": {"type": "Int8"},
    "Int4": {"type": "Int4"},
    "LowRank": {"type": "LowRank", "rank": 2},
    "TopK": {"type": "TopK", "fraction": 0.1},
}


def the_plan(up: float, codec: dict[str, Any], **sections: Any) -> Plan:
    site = a_site(up=up, assumed=())
    found = plan_round(a_spec(codec=codec, **sections), {site.name: site}, {}).plans
    assert found.excluded == {}
    return found.plans[site.name]


def shapes_of(ranks: dict[str, int]) -> dict[str, tuple[int, ...]]:
    shapes: dict[str, tuple[int, ...]] = dict(HEAD)
    for weight in MPNET.weights:
        if rank := ranks[weight.name]:
            shapes |= dict(zip(factor_keys(weight.name), ((rank, weight.d_in), (weight.d_out, rank)), strict=True))
    return shapes


@pytest.mark.parametrize("name", CODECS)
def test_an_update_is_as_large_as_the_trainers_file(name: str) -> None:
    codec = Codec(**CODECS[name])
    rungs, ranks = ladder(codec, name), {weight.name: (0, 4, 32)[index % 3] for index, weight in enumerate(MPNET.weights)}
    parts = {part: one for key, shape in shapes_of(ranks).items() for part, one in parts_of(key, shape, nominal(shape, rungs)).items()}
    file = safetensors.numpy.save({key: np.zeros(part.shape, DTYPES[part.dtype]) for key, part in parts.items()}, metadata={"format": "pt"})

    assert update_file_bytes(MPNET.weights, ranks, HEAD, rungs) == len(file)
    assert update_bytes(MPNET.weights, ranks, HEAD, rungs) == sum(part.size for part in parts.values())


@pytest.mark.parametrize("downlink", ["Float16", "Int8"])
def test_a_global_adapter_is_as_large_as_the_file_that_the_sites_read(downlink: str) -> None:
    codec, ranks = Codec(downlink=downlink), uniform_ranks(MPNET.weights, 8)
    tensors = {key: np.random.default_rng(1).standard_normal(shape).astype(np.float32) for key, shape in shapes_of(ranks).items()}
    sink = io.BytesIO()

    class Bytes:
        data = safetensors.numpy.save(tensors)
        size = len(data)

        def read(self, offset: int, length: int) -> bytes:
            return self.data[offset : offset + length]

    artifact = write_encoded(open_tensors(Bytes()), codec, "encoded", sink)

    assert global_file_bytes(MPNET.weights, 8, HEAD, ladder(codec, downlink)) == pytest.approx(artifact.size, abs=64), (
        "the order of offsets"
    )


@pytest.mark.parametrize("name", CODECS)
def test_what_the_planner_counts_for_an_element_is_no_less_than_it_takes_with_a_higher_rank(name: str) -> None:
    rungs = ladder(Codec(**CODECS[name]), name)

    assert element_bytes(32, 768, rungs) <= element_bytes(4, 768, rungs) <= 4
    assert element_bytes(4, 768, ()) == 4


def test_a_slow_uplink_holds_a_site_back_less_with_a_codec() -> None:
    plain, coded = (the_plan(3e4, codec, rounds={"count": 2, "deadline": "20m"}) for codec in ({}, {"type": "Int4"}))

    assert coded.forecast.upload_bytes < plain.forecast.upload_bytes or sum(coded.ranks.values()) > sum(plain.ranks.values())
    trained = [sum(plan.ranks.values()) * plan.steps for plan in (plain, coded)]
    assert trained[1] > 1.2 * trained[0]
    assert coded.forecast.seconds <= 0.8 * 20 * 60


def test_a_plan_says_what_the_codec_saves() -> None:
    (told,) = [one for one in the_plan(1e8, {"type": "Int4"}).why if "travels" in one]

    assert told.startswith("its update travels as Int4: ")
    assert " instead of " in told
    assert not [one for one in the_plan(1e8, {"downlink": "Int8"}).why if "travels" in one]


def test_a_codec_of_the_spec_is_one_of_the_trainers() -> None:
    assert conversion.codec(CodecSpec()) is None
    found = conversion.codec(CodecSpec.model_validate({"type": "TopK", "minCosine": 0.5, "errorFeedback": False, "downlink": "Int8"}))
    assert found == Codec(type="TopK", downlink="Int8", rank=4, fraction=0.05, error_feedback=False, min_cosine=0.5)
