"""docs/api-reference.md is what tools/api_reference.py makes of the CRDs."""

from typing import Any

import api_reference
import pytest


def test_the_page_is_up_to_date() -> None:
    assert api_reference.PAGE.read_text(encoding="utf-8") == api_reference.page(api_reference.read()), "run python tools/api_reference.py"


def field(**schema: Any) -> list[str]:
    """The lines of a spec with this one field."""
    return list(api_reference.rows({"properties": {"field": schema}}, "spec."))


@pytest.mark.parametrize(
    ("schema", "line"),
    [
        ({"type": "string", "description": "A name."}, "| `spec.field` | string |  | A name. |"),
        ({"type": "integer", "minimum": 1, "maximum": 9, "default": 3}, "| `spec.field` | integer | `3` | At least 1, at most 9. |"),
        ({"type": "number", "minimum": 0, "exclusiveMinimum": True}, "| `spec.field` | number |  | More than 0. |"),
        ({"enum": ["A", "B"], "default": "A", "description": "Which"}, "| `spec.field` | one of `A`, `B` | `A` | Which. |"),
        ({"type": "object", "default": {}}, "| `spec.field` | object | `{}` |  |"),
        ({"type": "array", "items": {"type": "string"}, "maxItems": 4}, "| `spec.field` | list of string |  | At most 4 items. |"),
        ({"type": "object", "additionalProperties": {"type": "string"}}, "| `spec.field` | map of string |  |  |"),
        ({"x-kubernetes-int-or-string": True}, "| `spec.field` | integer or string |  |  |"),
        ({"type": "string", "description": "a | <b> *c*"}, "| `spec.field` | string |  | a \\| &lt;b> \\*c\\*. |"),
    ],
)
def test_a_field_is_a_line_with_its_type_default_description_and_bounds(schema: dict[str, Any], line: str) -> None:
    assert field(**schema) == [line]


def test_fields_of_objects_lists_and_maps_follow_their_parent_and_required_ones_say_so() -> None:
    part = {"type": "object", "required": ["key"], "properties": {"key": {"type": "string"}}}

    found = field(type="array", items=part)

    assert [line.split(" | ")[0] for line in found] == ["| `spec.field`", "| `spec.field[].key`"]
    assert "*required*" in found[1]
    assert field(type="object", additionalProperties=part)[1].startswith("| `spec.field{}.key` ")


def test_the_messages_of_all_rules_are_collected() -> None:
    rule = {"rule": "x", "message": "no"}
    below = {
        "properties": {"a": {"items": {"x-kubernetes-validations": [rule]}}},
        "x-kubernetes-validations": [rule | {"message": "never"}],
    }

    assert list(api_reference.rules(below)) == ["never", "no"]
