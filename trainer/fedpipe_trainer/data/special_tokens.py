"""Tokenises texts of the data in which a special token (`</s>`, `<|im_end|>`) is text, beside others in which it is the token.

What a template writes is a special token; what a row's text has is not. Where one text holds both, characters stand for the row's while the
template is filled, and the parts between the template's special tokens are tokenised without any.
"""

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Final
from weakref import WeakKeyDictionary

from fedpipe_trainer.contract import FailureReason
from fedpipe_trainer.data.rows import Row
from fedpipe_trainer.data.tokenizer import Tokenizer
from fedpipe_trainer.errors import TaskFailed

_STAND_INS: Final = range(0xF0000, 0xFFFFE)
"""A plane of Unicode for private use."""


@dataclass(frozen=True)
class SpecialToken:
    """A special token, and whether it takes the white space around it with it, as Phi 3's do."""

    number: int
    takes_before: bool = False
    takes_after: bool = False


_of_tokenizers: WeakKeyDictionary[Tokenizer, Mapping[str, SpecialToken]] = WeakKeyDictionary()
"""Read once of each tokenizer: some have a thousand of them."""


def special_tokens_of(tokenizer: Tokenizer) -> Mapping[str, SpecialToken]:
    """The special tokens by their texts, the longest first: those with a name (`eos_token`), and those that are only marked as special.

    Transformers' `all_special_tokens` has the first alone, which lack what begins and ends a turn of many models (Phi 3, Llama 3).
    """
    found = _of_tokenizers.get(tokenizer)
    if found is None:
        numbers = {text: tokenizer.convert_tokens_to_ids(text) for text in tokenizer.all_special_tokens}
        named = {text: SpecialToken(number) for text, number in numbers.items() if number is not None}
        marked = {
            token.content: SpecialToken(number, token.lstrip, token.rstrip)
            for number, token in tokenizer.added_tokens_decoder.items()
            if token.special or token.content in named
        }
        by_length = sorted(filter(None, named | marked), key=len, reverse=True)
        found = _of_tokenizers[tokenizer] = {text: (named | marked)[text] for text in by_length}
    return found


class StandIns:
    """Characters that stand for the special tokens of some texts."""

    def __init__(self, texts: Sequence[str], tokenizer: Tokenizer) -> None:
        """Choose characters that are in none of the texts, for each special token that is in one."""
        self._tokenizer = tokenizer
        self._special = special_tokens_of(tokenizer)
        free = (chr(code) for code in _STAND_INS if not any(chr(code) in text for text in texts))
        begins = {first for first in {token[0] for token in self._special} if any(first in text for text in texts)}
        there = (token for token in self._special if token[0] in begins and any(token in text for text in texts))
        self._stand_ins = {token: next(free) for token in there}

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
        return self.encode_parts([text])[0]

    def encode_parts(self, parts: Sequence[str]) -> list[list[int]]:
        """As `encode`, of a text in parts: no token is in two of them."""
        encoded: list[list[int]] = [[] for _ in parts]
        pieces = [(at, piece, self._special.get(piece)) for at, part in enumerate(parts) for piece in self._split(part) if piece]
        following = [token for _, _, token in pieces[1:]] + [None]
        takes = False
        for (at, piece, token), after in zip(pieces, following, strict=True):
            if token is not None:
                encoded[at].append(token.number)
                takes = token.takes_after
                continue
            bare = piece.lstrip() if takes else piece
            bare = bare.rstrip() if after is not None and after.takes_before else bare
            if bare:
                encoded[at] += encode_plain([self._show(bare)], self._tokenizer, add_special_tokens=False)[0]
                takes = False
        return encoded

    def _split(self, text: str) -> list[str]:
        return re.split(f"({'|'.join(map(re.escape, self._special))})", text) if self._special else [text]

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
