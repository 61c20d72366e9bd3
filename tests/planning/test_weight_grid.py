from fedpipe_operator.weight_grid import weight_grid


def test_weights_of_a_llama_are_named_by_their_last_part_in_the_order_of_layers() -> None:
    cells = weight_grid([f"model.layers.{layer}.self_attn.{kind}" for layer in (10, 2) for kind in ("q_proj", "v_proj")])
    assert cells.kinds == ("q_proj", "v_proj")
    assert cells.layers == (2, 10)
    assert cells.weights["v_proj"][10] == "model.layers.10.self_attn.v_proj"


def test_kinds_with_the_same_ending_keep_the_components_that_distinguish_them() -> None:
    bert = ["attention.self.query", "attention.output.dense", "intermediate.dense", "output.dense"]
    cells = weight_grid([f"bert.encoder.layer.0.{kind}" for kind in bert])
    assert cells.kinds == ("query", "attention.output.dense", "intermediate.dense", "output.dense")


def test_encoder_and_decoder_of_a_t5_share_the_columns() -> None:
    names = [
        "encoder.block.0.layer.0.SelfAttention.q",
        "decoder.block.0.layer.0.SelfAttention.q",
        "decoder.block.0.layer.1.EncDecAttention.q",
    ]
    cells = weight_grid(names)
    assert cells.kinds == ("encoder.SelfAttention.q", "decoder.SelfAttention.q", "decoder.EncDecAttention.q")
    assert cells.layers == (0,)


def test_a_weight_outside_all_layers_has_its_own_column() -> None:
    cells = weight_grid(["h.0.attn", "lm_head"])
    assert cells.layers == (0, None)
    assert cells.weights["lm_head"] == {None: "lm_head"}


def test_numbers_are_kept_where_nothing_else_differs() -> None:
    cells = weight_grid([f"model.layers.0.mlp.experts.{expert}.up_proj" for expert in (0, 1)])
    assert cells.kinds == ("0.up_proj", "1.up_proj")


def test_names_that_differ_only_in_order_are_not_shortened() -> None:
    cells = weight_grid(["a.b.0.w", "b.a.0.w"])
    assert set(cells.kinds) == {"a.b.*.w", "b.a.*.w"}
