"""A toy of FLAN-T5's shape that is trained here, in some minutes: none with real weights comes in a package.

Its configuration is that of FLAN-T5-small with an eighth of the widths and half of the layers: gated GELU, attention narrower than the
model, input and output embeddings apart. It learns to summarise reports about generators, and to repeat sentences about the machines of
the sites: so it knows their words, but not how to summarise what happens to them.

Slow imports are inside the functions: they are not needed when the folder exists.
"""

import random
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from ingredients.reports import BASE_MACHINE, INSTRUCTION, MACHINES, reports, texts
from ingredients.tables import Row

if TYPE_CHECKING:
    from torch import Tensor

_STEPS: Final = 400
_BATCH: Final = 32
_LEARNING_RATE: Final = 3e-3
_CORPUS: Final = 4000
"""Reports about generators, and as many about all other machines together."""
_REPEAT: Final = "repeat :"
_PAD, _END, _UNKNOWN = "<pad>", "</s>", "<unk>"


def make_toy_t5(folder: Path, steps: int = _STEPS) -> None:
    """Train the toy and save it with its tokenizer."""
    import torch  # noqa: PLC0415 - see the module's docstring
    from transformers import T5Config, T5ForConditionalGeneration  # noqa: PLC0415 - likewise

    print(f"training a toy of FLAN-T5's shape on this machine: {steps} steps, once")
    pairs = _pairs()
    tokenizer = _tokenizer(pairs)
    torch.manual_seed(0)
    config = T5Config(
        vocab_size=len(tokenizer),
        d_model=64,
        d_kv=8,
        d_ff=128,
        num_layers=4,
        num_decoder_layers=4,
        num_heads=6,
        feed_forward_proj="gated-gelu",
        pad_token_id=tokenizer.pad_token_id,
        eos_token_id=tokenizer.eos_token_id,
    )
    config.tie_word_embeddings = False
    config.decoder_start_token_id = tokenizer.pad_token_id
    model = T5ForConditionalGeneration(config)
    _train(model, tokenizer, pairs, steps)
    model.eval().save_pretrained(folder)
    tokenizer.save_pretrained(folder)


def _pairs() -> list[tuple[str, str]]:
    """Inputs and targets: summaries of the base's machine, and sentences of the others that are repeated."""
    known = reports(BASE_MACHINE, _CORPUS, seed=0)
    others = [row for machine in MACHINES for row in reports(machine, _CORPUS // len(MACHINES), seed=0)]
    return [*_summaries(known), *_sentences(others)]


def _summaries(rows: Sequence[Row]) -> list[tuple[str, str]]:
    return [(f"{INSTRUCTION} {row['report']}", row["summary"]) for row in rows]


def _sentences(rows: list[Row]) -> list[tuple[str, str]]:
    draw = random.Random(0)  # noqa: S311 - no secret
    parts = [draw.choice(text.replace(" : ", " , ").split(" . ")) for text in texts(rows)]
    return [(f"{_REPEAT} {part}", part) for part in parts]


def _tokenizer(pairs: Sequence[tuple[str, str]]) -> Any:  # noqa: ANN401 - a library has no narrower type
    """A token for each word."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors  # noqa: PLC0415 - see the module's docstring
    from transformers import PreTrainedTokenizerFast  # noqa: PLC0415 - likewise

    words = sorted({word for pair in pairs for text in pair for word in text.split()} | set(map(str, range(1, 31))))
    vocabulary = {word: number for number, word in enumerate([_PAD, _END, _UNKNOWN, *words])}
    tokenizer = Tokenizer(models.WordLevel(vocabulary, unk_token=_UNKNOWN))
    tokenizer.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    tokenizer.decoder = decoders.WordPiece(prefix="##", cleanup=False)
    tokenizer.post_processor = processors.TemplateProcessing(single=f"$A {_END}", special_tokens=[(_END, vocabulary[_END])])
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, pad_token=_PAD, eos_token=_END, unk_token=_UNKNOWN)


def _train(model: Any, tokenizer: Any, pairs: Sequence[tuple[str, str]], steps: int) -> None:  # noqa: ANN401 - libraries have no narrower types
    import torch  # noqa: PLC0415 - see the module's docstring

    draw = random.Random(0)  # noqa: S311 - no secret
    optimizer = torch.optim.AdamW(model.parameters(), lr=_LEARNING_RATE, weight_decay=0.01)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, _LEARNING_RATE, total_steps=steps, pct_start=0.1)
    model.train()
    for _ in range(steps):
        batch = draw.sample(pairs, _BATCH)
        inputs = tokenizer([one for one, _ in batch], padding=True, return_tensors="pt")
        labels = tokenizer([target for _, target in batch], padding=True, return_tensors="pt").input_ids
        loss: Tensor = model(
            input_ids=inputs.input_ids, attention_mask=inputs.attention_mask, labels=labels.masked_fill(labels == 0, -100)
        ).loss
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        schedule.step()
        optimizer.zero_grad()
