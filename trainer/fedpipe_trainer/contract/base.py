"""The one base class of everything on the wire."""

from typing import Final

from pydantic import BaseModel, ConfigDict
from pydantic.alias_generators import to_camel

SCHEMA_VERSION: Final = 1


class Wire(BaseModel):
    """A frozen value that is camelCase in JSON, snake_case in Python, and refuses fields it does not know."""

    model_config = ConfigDict(
        frozen=True,
        extra="forbid",
        alias_generator=to_camel,
        populate_by_name=True,
        # `model_` is a word of this field: a field may be called model_length without a warning.
        protected_namespaces=(),
    )

    def to_json(self) -> str:
        """This value as JSON text, keys in camelCase, unset optional fields left out."""
        return self.model_dump_json(by_alias=True, exclude_none=True, indent=2)
