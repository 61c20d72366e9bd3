"""The base class of every message and value of the wire format."""

from typing import Final

from pydantic import BaseModel, ConfigDict
from pydantic.alias_generators import to_camel

SCHEMA_VERSION: Final = 1


class Wire(BaseModel):
    """A frozen value: camelCase keys in JSON, snake_case attributes in Python; unknown fields are refused."""

    model_config = ConfigDict(
        frozen=True,
        extra="forbid",
        alias_generator=to_camel,
        populate_by_name=True,
        # "model" has a meaning in machine learning: a field may be called model_length without a warning from pydantic.
        protected_namespaces=(),
    )

    def to_json(self) -> str:
        """This value as JSON text, with keys in camelCase and without optional fields that are not set."""
        return self.model_dump_json(by_alias=True, exclude_none=True, indent=2)
