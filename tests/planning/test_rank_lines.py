"""The ranks of a plan in words."""

from fedpipe_operator.planning.rank_lines import LONGEST_LINE, MAX_LINES, rank_lines


def weights(kind: str, layers: range) -> list[str]:
    return [f"model.layers.{layer}.self_attn.{kind}" for layer in layers]


def ranks_of(**ranks: list[int]) -> dict[str, int]:
    """By kind the rank in each layer."""
    return {
        name: rank for kind, by_layer in ranks.items() for name, rank in zip(weights(kind, range(len(by_layer))), by_layer, strict=True)
    }


def test_each_rank_is_said_with_its_layers_and_the_largest_comes_first() -> None:
    assert rank_lines(ranks_of(o_proj=[0] * 10 + [8] * 10 + [32] * 10), {}) == ("o_proj: rank 32 in layers 20–29; rank 8 in layers 10–19",)


def test_kinds_with_the_same_ranks_share_a_line_and_one_without_adapter_is_named() -> None:
    assert rank_lines(ranks_of(q_proj=[8, 16], v_proj=[8, 16], k_proj=[0, 0]), {}) == (
        "q_proj, v_proj: rank 16 in layer 1; rank 8 in layer 0",
        "k_proj: no adapter",
    )


def test_a_line_says_how_important_its_weights_are_where_they_differ_from_the_others() -> None:
    ranks = ranks_of(q_proj=[8, 8], v_proj=[16, 16], k_proj=[4, 4])
    scores = dict(zip(ranks, (0.5, 0.5, 1.2, 1.6, 1.0, 1.02), strict=True))

    assert rank_lines(ranks, scores) == (
        "q_proj: rank 8 in layers 0–1 (importance 0.5 × the mean of all weights)",
        "v_proj: rank 16 in layers 0–1 (importance 1.4 × the mean of all weights)",
        "k_proj: rank 4 in layers 0–1",
    )


def test_scattered_layers_are_counted_and_not_listed() -> None:
    assert rank_lines(ranks_of(q=[8 * (layer % 2) for layer in range(1000)]), {}) == ("q: rank 8 in layers 1, 3, 5, 7 … (500 layers)",)


def test_neither_lines_nor_their_length_grow_with_the_model() -> None:
    ranks = {f"model.layers.{layer}.mlp.experts.{expert}.up_proj": (expert * layer) % 37 for layer in range(1000) for expert in range(30)}

    lines = rank_lines(ranks, {})

    assert len(lines) == MAX_LINES
    assert max(map(len, lines)) <= LONGEST_LINE
    assert lines[-1] == "and 23 more lines like these, in the plan that the store has"


def test_many_kinds_with_the_same_ranks_are_counted() -> None:
    ranks = {f"layers.{layer}.experts.{expert}.up": 8 for layer in range(2) for expert in range(64)}

    assert rank_lines(ranks, {})[0].endswith(" and 58 more: rank 8 in layers 0–1")
