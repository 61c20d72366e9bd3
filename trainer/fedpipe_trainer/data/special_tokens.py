"""Tokenises texts of the data in which a special token (`</s>`, `<|im_end|>`) is text, beside others in which it is the token.

What a template writes is a special token; what a row's text has is not. Where one text holds both, characters stand for the row's while the
template is filled, and the parts between the template's special tokens are tokenised without any.
"""

import re
from collections.abc import Callable, Mapping, Sequence
from typing import Final

from fedpipe_trainer.contract import FailureReason
from fedpipe_trainer.data.rows import Row
from fedpipe_trainer.data.tokenizer import Tokenizer
from fedpipe_trainer.errors import TaskFailed

_STAND_INS: Final = range(0xF0000, 0xFFFFE)
"""A plane of Unicode for private use."""


class StandIns:
    """Characters that stand for the special tokens of some texts."""

    def __init__(self, texts: Sequence[str], tokenizer: Tokenizer) -> None:
        """Choose characters that are in none of the texts, for each special token that is in one."""
        self._tokenizer = tokenizer
        self._special = sorted(filter(None, tokenizer.all_special_tokens), key=len, reverse=True)
        free = (chr(code) for code in _STAND_INS if not any(chr(code) in text for text in texts))
        self._stand_ins = {token: next(free) for token in self._special if any(token in text for text in texts)}

    def __bool__(self) -> bool:
        """Whether the texts have any special token."""
        return bool(self._stand_ins)

    def hide(self, text: str) -> str:
        """The text with characters in place of its special tokens."""
        for token, stand_in in self._stand_ins.items():
            text = text.replace(token, stand_in)
        return text

    def encode(self, text: str) -> list[int]:
        """Token ids of a text in which special tokens are the template's, and those of the data hidden."""
        pieces = re.split(f"({'|'.join(map(re.escape, self._special))})", text) if self._special else [text]
        return [token for piece in pieces if piece for token in self._encode_piece(piece)]

    def _encode_piece(self, piece: str) -> list[int]:
        if piece in self._special:
            return [int(self._tokenizer.convert_tokens_to_ids(piece))]
        return encode_plain([self._show(piece)], self._tokenizer, add_special_tokens=False)[0]

    def _show(self, text: str) -> str:
        for token, stand_in in self._stand_ins.items():
            text = text.replace(stand_in, token)
        return text


def require_end_token(tokenizer: Tokenizer) -> int:
    """The token that ends an answer.

    Raises:
        TaskFailed: BadModel, the tokenizer has none.
    """
    end: int | None = tokenizer.eos_token_id
    if end is None:
        raise TaskFailed(
            FailureReason.BAD_MODEL,
            "the tokenizer has no end-of-sequence token, so the model cannot learn where a response ends: use a tokenizer that has one",
        )
    return end


def without_end(encoded: Sequence[list[int]], tokenizer: Tokenizer) -> list[list[int]]:
    """Texts that something follows, without the end token that the tokenizer adds to each."""
    return [ids[:-1] if ids[-1:] == [tokenizer.eos_token_id] else ids for ids in encoded]


def encode_plain(texts: Sequence[str], tokenizer: Tokenizer, **options: object) -> list[list[int]]:
    """Token ids of texts of the data: a special token in them is text."""
    return [list(ids) for ids in tokenizer(list(texts), split_special_tokens=True, **options)["input_ids"]]


def encode_filled(
    rows: Sequence[Row], fill: Callable[[Mapping[str, str]], str], tokenizer: Tokenizer, *, add_special_tokens: bool = True
) -> list[list[int]]:
    """Token ids of a template filled with each row; nothing is truncated.

    Args:
        rows: at least one.
        fill: makes the text of a row.
        tokenizer: the model's.
        add_special_tokens: whether with those that the tokenizer adds.
    """
    options = {"add_special_tokens": add_special_tokens}
    if not StandIns([fill(dict.fromkeys(rows[0], ""))], tokenizer):
        return encode_plain([fill(row) for row in rows], tokenizer, **options)
    hidden = [StandIns(list(row.values()), tokenizer) for row in rows]
    # Those rows that have none are tokenised as they always were: the template's special tokens are the tokenizer's to find.
    encoded = [list(ids) for ids in tokenizer([fill(row) for row in rows], **options)["input_ids"]]
    before, after = _added_tokens(tokenizer) if add_special_tokens else ([], [])
    for at, (row, stand_ins) in enumerate(zip(rows, hidden, strict=True)):
        if stand_ins:
            filled = fill({column: stand_ins.hide(text) for column, text in row.items()})
            encoded[at] = [*before, *stand_ins.encode(filled), *after]
    return encoded


def _added_tokens(tokenizer: Tokenizer) -> tuple[list[int], list[int]]:
    """What the tokenizer adds before and after a text."""
    whole, bare = (list(tokenizer(["a"], add_special_tokens=added)["input_ids"][0]) for added in (True, False))
    first = next(at for at in range(len(whole)) if whole[at : at + len(bare)] == bare)
    return whole[:first], whole[first + len(bare) :]
