"""The base class of every message and value of the wire format."""

from typing import Any, Final

from pydantic import BaseModel, ConfigDict, GetCoreSchemaHandler, model_validator
from pydantic.alias_generators import to_camel
from pydantic_core import CoreSchema

SCHEMA_VERSION: Final = 1
_COLLECTIONS: Final = frozenset({"dict", "list", "set", "tuple"})
"""Types of pydantic's schemas."""
_MOST_UNKNOWN: Final = 16
"""Fields of an object that are named one by one in an error."""


def _failing_fast(schema: Any) -> Any:  # noqa: ANN401 -- a schema, or any part of one
    """The schema, in which every collection stops at its first wrong item."""
    if isinstance(schema, dict):
        inner = {key: one if key == "metadata" else _failing_fast(one) for key, one in schema.items()}
        kind = schema.get("type")  # or the schema of a field of this name
        return inner | {"fail_fast": True} if isinstance(kind, str) and kind in _COLLECTIONS else inner
    return [_failing_fast(one) for one in schema] if isinstance(schema, list) else schema


class FrozenValue(BaseModel):
    """A frozen value: camelCase keys in JSON, snake_case attributes in Python; unknown fields are refused."""

    model_config = ConfigDict(
        frozen=True,
        extra="forbid",
        alias_generator=to_camel,
        populate_by_name=True,
        # "model" has a meaning in machine learning: a field may be called model_length without a warning from pydantic.
        protected_namespaces=(),
    )

    @classmethod
    def __get_pydantic_core_schema__(cls, source: Any, handler: GetCoreSchemaHandler) -> CoreSchema:  # noqa: ANN401 -- pydantic's hook
        """As pydantic makes it, but for its errors: a site writes what is read, and those of 100,000 wrong items would take a gigabyte."""
        found: CoreSchema = _failing_fast(handler(source))
        return found

    def to_json(self) -> str:
        """This value as JSON text, with keys in camelCase and without optional fields that are not set."""
        return self.model_dump_json(by_alias=True, exclude_none=True, indent=2)


class Wire(FrozenValue):
    """A message between operator and trainer, or a part of one: an object with very many unknown fields is refused as a whole.

    Not for what is read strictly: pydantic takes the lists of JSON for tuples, and those of a hook's values not.
    """

    @model_validator(mode="before")
    @classmethod
    def _require_few_unknown_fields(cls, value: Any) -> Any:  # noqa: ANN401 -- pydantic's hook
        """An error for each of a million unknown fields would take gigabytes."""
        if isinstance(value, dict) and len(value) > len(cls.model_fields) + _MOST_UNKNOWN:
            raise ValueError(f"it has {len(value)} fields, expected at most {len(cls.model_fields)}")
        return value
