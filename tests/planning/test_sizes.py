"""The sizes of the files that are sent, compared with files as the trainer and the operator write them."""

import io

import numpy as np
import safetensors.numpy
from site_profiles import MPNET, SMOLLM2

from fedpipe_operator.aggregation.tensors import TensorWriter, factor_keys
from fedpipe_operator.planning.sizes import global_file_bytes, uniform_ranks, update_file_bytes
from fedpipe_trainer.contract import WeightShape

HEAD = {"base_model.model.classifier.out_proj.weight": (20, 768), "base_model.model.classifier.dense.bias": (768,)}


def factors(weight: WeightShape, rank: int) -> dict[str, tuple[int, ...]]:
    return dict(zip(factor_keys(weight.name), ((rank, weight.d_in), (weight.d_out, rank)), strict=True))


def written_by_the_operator(shapes: dict[str, tuple[int, ...]]) -> int:
    sink = io.BytesIO()
    writer = TensorWriter(sink, shapes)
    for key, shape in shapes.items():
        writer.write(key, np.zeros(shape, dtype=np.float32))
    return writer.close("global.safetensors").size


def test_an_update_is_as_large_as_the_trainers_file() -> None:
    ranks = {weight.name: (0, 4, 32)[index % 3] for index, weight in enumerate(MPNET.weights)}
    shapes = HEAD | {
        key: shape for weight in MPNET.weights if ranks[weight.name] for key, shape in factors(weight, ranks[weight.name]).items()
    }
    file = safetensors.numpy.save({key: np.zeros(shape, dtype=np.float32) for key, shape in shapes.items()}, metadata={"format": "pt"})

    assert update_file_bytes(MPNET.weights, ranks, HEAD) == len(file)


def test_a_global_adapter_is_as_large_as_the_operators_file() -> None:
    shapes = {key: HEAD[key] for key in sorted(HEAD)}
    for weight in sorted(MPNET.weights, key=lambda weight: weight.name):
        shapes |= factors(weight, 8)

    assert global_file_bytes(MPNET.weights, 8, HEAD) == written_by_the_operator(shapes)


def test_a_language_model_has_no_head_to_send() -> None:
    shapes = {key: shape for weight in sorted(SMOLLM2.weights, key=lambda weight: weight.name) for key, shape in factors(weight, 4).items()}

    assert global_file_bytes(SMOLLM2.weights, 4, {}) == written_by_the_operator(shapes)


def test_nearly_all_bytes_are_4_for_each_element() -> None:
    elements = 4 * sum(weight.d_in + weight.d_out for weight in MPNET.weights)

    assert 0 < update_file_bytes(MPNET.weights, uniform_ranks(MPNET.weights, 4), {}) - 4 * elements < 0.02 * 4 * elements
