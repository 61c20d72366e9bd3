"""YAML as Kubernetes' own tools read it: a key that is there twice is an error, and every key is a text."""

from typing import Any

import yaml


class StrictLoader(yaml.SafeLoader):
    """Refuses what another reader would have to guess."""


def _mapping(loader: StrictLoader, node: yaml.MappingNode) -> dict[str, Any]:
    names = [loader.construct_object(key, deep=True) for key, _ in node.value]
    assert all(isinstance(name, str) for name in names), f"a key of {names} is no text"
    assert len(set(names)) == len(names), f"a key of {names} is there twice"
    return dict(zip(names, (loader.construct_object(value, deep=True) for _, value in node.value), strict=True))


StrictLoader.add_constructor("tag:yaml.org,2002:map", _mapping)


def strict_objects(text: str) -> list[dict[str, Any]]:
    """The documents of this text that are not empty."""
    return [one for one in yaml.load_all(text, StrictLoader) if one]
