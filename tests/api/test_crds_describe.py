"""Every field of the CRDs has a description: the docstring of the model's field where there is one."""

import ast
import inspect
import textwrap
from collections.abc import Iterator
from typing import Any, get_args, get_origin

import pytest
from crds import openapi_schema
from pydantic import BaseModel

from fedpipe_operator.api import EdgeSite, FederatedFineTune

KINDS = {"EdgeSite": EdgeSite, "FederatedFineTune": FederatedFineTune}


@pytest.mark.parametrize("kind", KINDS)
def test_every_field_has_a_description_which_is_the_model_s_docstring_where_there_is_one(kind: str) -> None:
    assert list(_wrong_descriptions(openapi_schema(kind), KINDS[kind], kind)) == []


def _wrong_descriptions(schema: dict[str, Any], model: type[BaseModel], path: str) -> Iterator[str]:
    sentences = _docstrings(model)
    by_alias = {field.alias or name: (name, field.annotation) for name, field in model.model_fields.items()}
    for name, field in schema["properties"].items():
        if name == "metadata":
            continue
        attribute, annotation = by_alias.get(name, (name, None))
        inner = next(_models(annotation), None) if field.get("type") in ("object", "array") and name != "task" else None
        own = inner.__doc__ if inner and field["type"] == "object" else None
        wanted = sentences.get(attribute) or own
        if not field.get("description") or (wanted and " ".join(wanted.split()) != field["description"]):
            yield f"{path}.{name}: {field.get('description')!r} should be {wanted!r}"
        if inner:
            yield from _wrong_descriptions(field.get("items", field), inner, f"{path}.{name}")


def _docstrings(model: type[BaseModel]) -> dict[str, str]:
    """The docstring below each field, of the class and of its base classes."""
    found: dict[str, str] = {}
    for cls in reversed([cls for cls in model.__mro__ if issubclass(cls, BaseModel) and cls is not BaseModel]):
        body = ast.parse(textwrap.dedent(inspect.getsource(cls))).body[0]
        assert isinstance(body, ast.ClassDef)
        for field, after in zip(body.body, body.body[1:], strict=False):
            if isinstance(field, ast.AnnAssign) and isinstance(field.target, ast.Name) and isinstance(after, ast.Expr):
                found[field.target.id] = str(ast.literal_eval(after.value))
    return found


def _models(annotation: object) -> Iterator[type[BaseModel]]:
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        yield annotation
    for argument in get_args(annotation) if get_origin(annotation) is not dict else ():
        yield from _models(argument)
