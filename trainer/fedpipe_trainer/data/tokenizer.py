"""The part of a transformers tokenizer that is used to encode data."""

from collections.abc import Hashable, Mapping
from typing import Any, Protocol

from tokenizers import AddedToken


class Tokenizer(Hashable, Protocol):
    """A tokenizer, which may have a chat template."""

    chat_template: Any
    eos_token_id: int | None

    @property
    def is_fast(self) -> bool:
        """Whether it knows which characters a token is made from."""

    @property
    def special_tokens_map(self) -> dict[str, Any]:
        """By name (`bos_token`, …), the special tokens, which chat templates read."""

    @property
    def all_special_tokens(self) -> list[str]:
        """The special tokens that have a name, see `special_tokens_of`."""

    @property
    def added_tokens_decoder(self) -> Mapping[int, AddedToken]:
        """By id, the tokens that are found in a text before it is tokenised; some are special."""

    def __call__(self, text: list[str] | None = None, **options: Any) -> Any:  # noqa: ANN401 - transformers' own signature
        """Token ids under "input_ids", one list per text."""

    def convert_tokens_to_ids(self, tokens: str) -> Any:  # noqa: ANN401 - transformers' own signature
        """The id of a token."""

    def get_chat_template(self, chat_template: str | None = None, tools: list[dict[str, Any]] | None = None) -> str:
        """The chat template; one of several by whether there are tools."""
