"""Codecs on tensors: what they lose, how large they are, that a file describes itself, and which one is taken."""

from itertools import pairwise
from math import prod
from typing import Any, Final

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fedpipe_trainer.codecs import CODECS, DTYPES, Float16, Int4, Int8, LowRank, TensorCodec, TopK, ladder
from fedpipe_trainer.codecs.encoding import Fidelity, counted, encode
from fedpipe_trainer.codecs.files import codec_in, decode, decode_whole, nominal, part_key, parts_of
from fedpipe_trainer.contract import Codec

ALL: Final[tuple[TensorCodec, ...]] = (Float16(), Int8(), Int4(), LowRank(2), TopK(0.1))
LEAST_COSINE: Final = {"Float16": 0.999999, "Int8": 0.9999, "Int4": 0.98, "LowRank": 0.2, "TopK": 0.4}
"""Between random values and what is decoded of them: LowRank and TopK keep a part of them only."""
SHAPES: Final = ((8, 384), (384, 8), (1, 1), (3, 127), (129,), (7, 5, 11))


def values(shape: tuple[int, ...], scale: float = 1e-3) -> Any:
    return (np.random.default_rng(7).standard_normal(shape) * scale).astype(np.float32)


def applying() -> list[Any]:
    return [pytest.param(codec, shape, id=f"{codec.name} {shape}") for codec in ALL for shape in SHAPES if codec.parts(shape)]


@pytest.mark.parametrize(("codec", "shape"), applying())
def test_the_parts_are_as_declared_and_give_a_tensor_of_the_same_shape(codec: TensorCodec, shape: tuple[int, ...]) -> None:
    encoded = codec.encode(values(shape))

    assert {name: (array.dtype, array.shape) for name, array in encoded.items()} == {
        name: (DTYPES[part.dtype], part.shape) for name, part in codec.parts(shape).items()
    }
    decoded = codec.decode(encoded, shape)
    assert (decoded.dtype, decoded.shape) == (np.float32, shape)


@pytest.mark.parametrize("codec", ALL, ids=lambda codec: codec.name)
@pytest.mark.parametrize("shape", [(32, 768), (768, 32)])
def test_a_codec_keeps_what_it_promises_of_random_values(codec: TensorCodec, shape: tuple[int, ...]) -> None:
    tensor = values(shape)

    fidelity = Fidelity.of(tensor, codec.decode(codec.encode(tensor), shape))

    assert fidelity.cosine >= LEAST_COSINE[codec.name]
    assert fidelity.relative_error <= 1


@pytest.mark.parametrize(("codec", "share"), [(Float16(), 0.5), (Int8(), 0.26), (Int4(), 0.133), (LowRank(4), 0.065), (TopK(0.05), 0.076)])
def test_a_codec_takes_the_share_of_bytes_that_the_spec_names(codec: TensorCodec, share: float) -> None:
    sizes = {name: array.nbytes for name, array in codec.encode(values((32, 4096))).items()}

    assert sizes == {name: part.size for name, part in codec.parts((32, 4096)).items()}
    assert sum(sizes.values()) / (4 * 32 * 4096) == pytest.approx(share, abs=0.003)


@pytest.mark.parametrize("codec", [LowRank(2), LowRank(3)])
@pytest.mark.parametrize("shape", [(8, 64), (64, 8)])
def test_low_rank_keeps_a_matrix_of_that_rank(codec: LowRank, shape: tuple[int, int]) -> None:
    rng = np.random.default_rng(3)
    tensor = (rng.standard_normal((shape[0], 2)) @ rng.standard_normal((2, shape[1]))).astype(np.float32)

    assert Fidelity.of(tensor, codec.decode(codec.encode(tensor), shape)).relative_error < 1e-3


def test_low_rank_is_the_best_of_its_rank() -> None:
    tensor = values((16, 200))
    squares = np.linalg.svd(tensor.astype(np.float64), compute_uv=False) ** 2

    fidelity = Fidelity.of(tensor, LowRank(4).decode(LowRank(4).encode(tensor), (16, 200)))

    assert fidelity.relative_error**2 == pytest.approx(squares[4:].sum() / squares.sum(), rel=1e-3)


def test_top_k_keeps_the_largest_values_and_of_equal_ones_the_first() -> None:
    tensor = np.array([[0, -3, 1], [1, 2, 1]], np.float32)

    assert TopK(0.5).decode(TopK(0.5).encode(tensor), (2, 3)).tolist() == [[0, -3, 1], [0, 2, 0]]


@settings(derandomize=True, deadline=None, max_examples=200)
@given(st.lists(st.floats(-(2.0**127), 2.0**127, width=32), min_size=1, max_size=300), st.sampled_from([Int8(), Int4()]))
def test_the_error_of_integers_is_half_a_step_of_their_group_at_most(numbers: list[float], codec: TensorCodec) -> None:
    tensor = np.array(numbers, np.float32)
    encoded = codec.encode(tensor)

    error = np.abs(codec.decode(encoded, tensor.shape).astype(np.float64) - tensor)

    steps = np.repeat(encoded["scales"].astype(np.float64), 128)[: tensor.size]
    assert (error <= steps * 0.501 + 1e-44).all()


@settings(derandomize=True, deadline=None, max_examples=200)
@given(st.data())
def test_whatever_the_parts_say_a_tensor_or_an_error_comes_out(data: st.DataObject) -> None:
    codec = data.draw(st.sampled_from(ALL))
    shape = data.draw(st.sampled_from([shape for shape in SHAPES if codec.parts(shape)]))
    rng = np.random.default_rng(data.draw(st.integers(0, 2**32)))
    parts = {name: np.frombuffer(rng.bytes(part.size), DTYPES[part.dtype]).reshape(part.shape) for name, part in codec.parts(shape).items()}

    if codec.name == "TopK" and not _is_ascending(parts["positions"], prod(shape)):
        with pytest.raises(ValueError, match="do not ascend"):
            codec.decode(parts, shape)
        return
    decoded = codec.decode(parts, shape)
    assert (decoded.dtype, decoded.shape) == (np.float32, shape)


def _is_ascending(positions: Any, size: int) -> bool:
    found = [int(one) for one in positions]
    return all(first < second for first, second in pairwise(found)) and 0 <= found[0] <= found[-1] < size


@pytest.mark.parametrize("positions", [[1, 0], [3, 3], [-1, 2], [0, 6]])
def test_positions_outside_of_the_tensor_or_out_of_order_are_refused(positions: list[int]) -> None:
    parts = {"positions": np.array(positions, np.int32), "values": np.ones(2, np.float16)}

    with pytest.raises(ValueError, match="do not ascend"):
        TopK(0.3).decode(parts, (2, 3))


# --- the ladder


def test_the_better_codecs_follow_in_order() -> None:
    names = {name: [one.name for one in ladder(Codec(), name)] for name in ("Identity", *CODECS)}

    assert names == {
        "Identity": [],
        "TopK": ["TopK", "Int4", "Int8", "Float16"],
        "LowRank": ["LowRank", "Int4", "Int8", "Float16"],
        "Int4": ["Int4", "Int8", "Float16"],
        "Int8": ["Int8", "Float16"],
        "Float16": ["Float16"],
    }
    with pytest.raises(ValueError, match="there is no codec Magic: use Identity, TopK"):
        ladder(Codec(), "Magic")


@pytest.mark.parametrize(
    ("bounds", "taken"),
    [
        ({}, "Int4"),
        ({"min_cosine": 0.1, "max_relative_error": 1}, "TopK"),
        ({"min_cosine": 0.9999}, "Int8"),
        ({"max_relative_error": 1e-9}, "Identity"),
    ],
)
def test_a_tensor_gets_the_first_codec_that_keeps_to_the_bounds(bounds: dict[str, float], taken: str) -> None:
    codec = Codec(type="TopK", fraction=0.1, **bounds)
    tensor = values((16, 64))

    encoded = encode(tensor, ladder(codec, codec.type), codec)

    assert encoded.name == taken
    assert encoded.fidelity.cosine >= codec.min_cosine
    assert (encoded.decoded is None) == (taken == "Identity")


def test_a_shape_that_a_codec_has_nothing_for_gets_the_next_one() -> None:
    codec = Codec(type="LowRank", rank=4)
    rungs = ladder(codec, codec.type)

    assert nominal((384,), rungs) is rungs[1]
    assert encode(values((384,)), rungs, codec).name == "Int4"
    assert nominal((2, 2), ()) is None


@pytest.mark.parametrize("wrong", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("name", CODECS)
def test_values_that_are_not_finite_are_sent_as_they_are(wrong: float, name: str) -> None:
    tensor = values((16, 64))
    tensor[3, 5] = wrong
    codec = Codec(type=name)

    with np.errstate(all="ignore"):
        assert encode(tensor, ladder(codec, name), codec).name == "Identity"


@pytest.mark.parametrize("name", CODECS)
def test_an_increment_of_zero_loses_nothing(name: str) -> None:
    codec = Codec(type=name)

    encoded = encode(np.zeros((16, 64), np.float32), ladder(codec, name), codec)

    assert (encoded.name, encoded.fidelity.cosine, encoded.fidelity.relative_error) == (name, 1, 0)
    assert encoded.decoded is not None
    assert not encoded.decoded.any()


def test_figures_of_tensors_add_up_to_those_of_all_values() -> None:
    tensors = [values((4, 9)), values((30,), 1e-2)]
    decoded = [Int4().decode(Int4().encode(one), one.shape) for one in tensors]

    whole = Fidelity.of(np.concatenate([one.reshape(-1) for one in tensors]), np.concatenate([one.reshape(-1) for one in decoded]))
    summed = Fidelity.of(tensors[0], decoded[0]) + Fidelity.of(tensors[1], decoded[1])

    assert summed.cosine == pytest.approx(whole.cosine, rel=1e-12)
    assert summed.relative_error == pytest.approx(whole.relative_error, rel=1e-12)
    assert counted(["Int8", "Int4", "Int8"]) == {"Int4": 1, "Int8": 2}


# --- files


@pytest.mark.parametrize("codec", ALL, ids=lambda codec: codec.name)
def test_a_file_tells_by_its_keys_how_a_tensor_is_encoded(codec: TensorCodec) -> None:
    shape = (16, 64)
    arrays = {part_key("weight", codec.name, name): array for name, array in codec.encode(values(shape)).items()}

    assert arrays.keys() == parts_of("weight", shape, codec).keys()
    assert codec_in(arrays, "weight", shape, ALL) is codec
    assert codec_in({"weight": 1}, "weight", shape, ALL) is None
    assert codec_in(list(arrays)[1:], "weight", shape, ALL) is None
    assert decode(arrays, "weight", shape, codec).shape == shape


def test_whole_tensors_are_decoded_without_knowing_their_shapes() -> None:
    tensors = {"a.lora_A.weight": values((4, 9)), "b": values((130,)), "c": values((2, 3))}
    arrays: dict[str, Any] = {"c": tensors["c"]}
    for key, codec in (("a.lora_A.weight", Int8()), ("b", Float16())):
        arrays |= {part_key(key, codec.name, name): array for name, array in codec.encode(tensors[key]).items()}

    decoded = decode_whole(arrays)

    assert decoded.keys() == tensors.keys()
    assert all(Fidelity.of(tensors[key], decoded[key]).relative_error < 0.02 for key in tensors)
    with pytest.raises(ValueError, match=r"it has no b\.Int8\.scales"):
        decode_whole({"b.Int8.values": np.zeros(3, np.int8)})
