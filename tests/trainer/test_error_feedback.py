"""Error feedback: nothing that compression loses is lost for good, and another attempt at a round sends the same."""

import logging
import os
import time
from pathlib import Path
from typing import Any, Final

import numpy as np
import pytest

from fedpipe_trainer.codecs import Int4
from fedpipe_trainer.codecs.encoding import Fidelity
from fedpipe_trainer.codecs.files import decode
from fedpipe_trainer.compression import Weight, compress
from fedpipe_trainer.contract import Codec, RunRef
from fedpipe_trainer.error_feedback import LowRank, ResidualStore, as_residuals, correct, left_over, residual_of

RUN: Final = RunRef(namespace="wards", name="r", uid="u")
WEIGHT: Final = Weight("q", 2.0)
A_KEY, B_KEY = WEIGHT.keys
HEAD: Final = "base_model.model.classifier.weight"
INT4: Final = Codec(type="Int4")


def an_update(seed: int, rank: int = 4) -> dict[str, Any]:
    """Factors that change slowly from one round to the next, as those of the global adapter do."""
    rng, same = np.random.default_rng(seed), np.random.default_rng(99)
    shapes = {A_KEY: (rank, 24), B_KEY: (16, rank), HEAD: (3, 16)}
    return {key: (same.standard_normal(shape) + 0.1 * rng.standard_normal(shape)).astype(np.float32) for key, shape in shapes.items()}


def product(tensors: Any) -> Any:
    return WEIGHT.scale * tensors[B_KEY].astype(np.float64) @ tensors[A_KEY]


def decoded_of(update: dict[str, Any], residuals: Any) -> tuple[dict[str, Any], Any]:
    """What the operator sees of an update whose tensors started at zero, and the residuals after it."""
    sent = compress(update, {}, INT4, weights=[WEIGHT], residuals=residuals)
    return {key: decode(sent.arrays, key, update[key].shape, Int4()) for key in update}, sent.residuals


def residual_product(residuals: Any) -> Any:
    left_factor = residual_of(residuals, "q", (16, 24))
    assert left_factor is not None
    return left_factor.left @ left_factor.right


def test_what_arrived_and_what_is_left_over_add_up_to_what_was_trained() -> None:
    residuals: Any = {}
    trained, arrived, of_head, head = np.zeros((16, 24)), np.zeros((16, 24)), np.zeros((3, 16)), np.zeros((3, 16))
    for round_ in range(6):
        update = an_update(round_, rank=4)
        decoded, residuals = decoded_of(update, residuals)
        trained, arrived = trained + product(update), arrived + product(decoded)
        of_head, head = of_head + update[HEAD], head + decoded[HEAD]

    np.testing.assert_allclose(head + residuals[HEAD], of_head, atol=1e-5)
    lost = np.linalg.norm(trained - arrived)
    assert np.linalg.norm(trained - arrived - residual_product(residuals)) < 0.5 * lost, "the cut to twice the rank loses the rest"


def test_with_feedback_less_is_lost_over_rounds_than_without() -> None:
    with_feedback, without = np.zeros((16, 24)), np.zeros((16, 24))
    residuals: Any = {}
    for round_ in range(12):
        update = an_update(round_)
        decoded, residuals = decoded_of(update, residuals)
        with_feedback += product(decoded) - product(update)
        without += product(decoded_of(update, {})[0]) - product(update)

    assert np.linalg.norm(with_feedback) < 0.5 * np.linalg.norm(without)


def test_a_correction_says_exactly_what_lies_in_the_row_space() -> None:
    update, rng = an_update(1), np.random.default_rng(2)
    a, b = update[A_KEY], update[B_KEY]
    inside = LowRank(rng.standard_normal((16, 4)), a.astype(np.float64))

    new_a, new_b, rest = correct(a, b, 2.0, inside)

    np.testing.assert_allclose(2.0 * (new_b @ new_a - b @ a), inside.left @ inside.right, atol=1e-4)
    assert np.linalg.norm(rest.left @ rest.right) < 1e-3 * np.linalg.norm(inside.left @ inside.right)


def test_it_says_nearly_all_that_lies_in_the_column_space() -> None:
    update, rng = an_update(1), np.random.default_rng(2)
    a, b = update[A_KEY], update[B_KEY]
    inside = LowRank(b.astype(np.float64), 0.1 * rng.standard_normal((4, 24)))

    new_a, new_b, rest = correct(a, b, 2.0, inside)

    lost = np.linalg.norm(inside.left @ inside.right)
    assert np.linalg.norm(2.0 * (new_b.astype(np.float64) @ new_a - b.astype(np.float64) @ a) - inside.left @ inside.right) < 0.05 * lost
    assert np.linalg.norm(rest.left @ rest.right) < 0.05 * lost


def test_what_lies_outside_of_both_is_left_over() -> None:
    update, rng = an_update(1), np.random.default_rng(2)
    a, b = update[A_KEY], update[B_KEY]
    rows, columns = np.linalg.qr(a.T.astype(np.float64))[0], np.linalg.qr(b.astype(np.float64))[0]
    row, column = rng.standard_normal((1, 24)), rng.standard_normal((16, 1))
    outside = LowRank(column - columns @ columns.T @ column, row - row @ rows @ rows.T)

    new_a, new_b, rest = correct(a, b, 2.0, outside)

    np.testing.assert_allclose(new_b, b, atol=1e-5)
    np.testing.assert_allclose(new_a, a, atol=1e-5)
    np.testing.assert_allclose(rest.left @ rest.right, outside.left @ outside.right, atol=1e-5)


def test_nearly_equal_rows_do_not_make_a_correction_large() -> None:
    update = an_update(1)
    a, b = update[A_KEY].copy(), update[B_KEY]
    a[1] = a[0] * (1 + 1e-7)
    residual = LowRank(np.ones((16, 1)), np.ones((1, 24)))

    new_a, new_b, _ = correct(a, b, 2.0, residual)

    assert np.isfinite(new_a).all()
    assert np.isfinite(new_b).all()
    assert np.linalg.norm(2.0 * (new_b @ new_a - b @ a)) <= 1.1 * np.linalg.norm(np.ones((16, 24)))


def test_columns_that_have_learned_nothing_do_not_make_a_correction_large() -> None:
    a = an_update(1)[A_KEY]

    new_a, new_b, rest = correct(a, np.zeros((16, 4), np.float32), 2.0, LowRank(np.zeros((16, 1)), np.ones((1, 24))))

    assert (new_a == a).all()
    assert not new_b.any()
    assert not (rest.left @ rest.right).any()


def test_a_residual_has_no_more_than_twice_the_rank_of_the_update() -> None:
    update = an_update(1)
    pair = update[A_KEY], update[B_KEY]
    rest = LowRank(np.random.default_rng(1).standard_normal((16, 9)), np.random.default_rng(2).standard_normal((9, 24)))

    left = left_over(rest, 2.0, pair, pair)

    assert left.left.shape == (16, 8)
    assert Fidelity.of(np.float32(rest.left @ rest.right), np.float32(left.left @ left.right)).cosine > 0.6


def test_what_is_left_of_a_weight_that_is_not_trained_in_a_round_waits() -> None:
    _, residuals = decoded_of(an_update(1), {})
    other = {HEAD: an_update(2)[HEAD]}

    after = compress(other, {}, INT4, weights=[], residuals=residuals).residuals

    assert all((after[key] == residuals[key]).all() for key in residuals if key != HEAD)


@pytest.mark.parametrize("shape", [(17, 24), (16, 23)])
def test_a_residual_of_another_shape_is_none(shape: tuple[int, int]) -> None:
    kept = as_residuals("q", LowRank(np.ones((16, 2)), np.ones((2, 24))))

    assert residual_of(kept, "q", (16, 24)) is not None
    assert residual_of(kept, "q", shape) is None
    assert residual_of(kept, "k", (16, 24)) is None


# --- the files


def kept(cache: Path) -> list[str]:
    return sorted(path.name.rpartition("-")[2] for path in (cache / "residuals").glob("*"))


def residuals_of(value: float) -> dict[str, Any]:
    return {HEAD: np.full((2, 2), value, np.float32)}


def value_in(residuals: Any) -> float | None:
    return float(residuals[HEAD][0, 0]) if residuals else None


def test_another_attempt_at_a_round_starts_from_what_the_first_one_did(tmp_path: Path) -> None:
    store = ResidualStore(tmp_path, RUN, "a")
    assert value_in(store.read(1)) is None
    for round_ in (1, 2, 3):
        store.write(round_, residuals_of(round_))

    assert value_in(store.read(3)) == 2
    assert value_in(store.read(4)) == 3
    assert value_in(store.read(9)) == 3, "rounds without this site lie between"
    assert kept(tmp_path) == ["2.safetensors", "3.safetensors"]


def test_the_residuals_of_another_run_or_site_are_not_read(tmp_path: Path) -> None:
    ResidualStore(tmp_path, RUN, "a").write(1, residuals_of(1))

    assert value_in(ResidualStore(tmp_path, RUN, "b").read(2)) is None
    assert value_in(ResidualStore(tmp_path, RUN.model_copy(update={"uid": "other"}), "a").read(2)) is None


def test_those_of_a_run_that_ended_a_month_ago_are_removed(tmp_path: Path) -> None:
    ResidualStore(tmp_path, RUN, "a").write(1, residuals_of(1))
    ended = time.time() - 31 * 86400
    for path in (tmp_path / "residuals").iterdir():
        os.utime(path, (ended, ended))

    ResidualStore(tmp_path, RUN, "b").write(1, residuals_of(2))

    assert len(kept(tmp_path)) == 1


def test_a_cache_that_cannot_be_used_costs_the_feedback_only(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    (tmp_path / "residuals").write_text("no folder")
    with caplog.at_level(logging.WARNING):
        ResidualStore(tmp_path, RUN, "a").write(1, residuals_of(1))
    assert "cannot be kept for the next round" in caplog.text

    (tmp_path / "residuals").unlink()
    ResidualStore(tmp_path, RUN, "a").write(1, residuals_of(1))
    next((tmp_path / "residuals").iterdir()).write_bytes(b"damaged")
    with caplog.at_level(logging.WARNING):
        assert value_in(ResidualStore(tmp_path, RUN, "a").read(2)) is None
    assert "cannot be read, and is not sent" in caplog.text
