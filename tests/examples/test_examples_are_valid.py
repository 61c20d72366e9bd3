"""Every YAML file in `examples/` is valid, for the models and for the CRDs."""

from pathlib import Path

import pytest
from crds import ROOT, is_accepted

from fedpipe_operator.api.documents import read_yaml
from fedpipe_operator.cli.files import read

FILES = sorted(file for file in (ROOT / "examples").glob("*/*.yaml") if file.parent.name != "serving")
FOLDERS = sorted({file.parent for file in FILES})


def test_there_are_examples() -> None:
    assert {folder.name for folder in FOLDERS} >= {"quickstart", "data-to-text"}


@pytest.mark.parametrize("folder", FOLDERS, ids=lambda folder: folder.name)
def test_the_files_of_an_example_are_valid_and_consistent(folder: Path) -> None:
    objects, problems = read([folder])

    assert problems == []
    assert objects.runs
    assert len(objects.sites) == 3


@pytest.mark.parametrize("file", FILES, ids=lambda file: f"{file.parent.name}/{file.name}")
def test_the_crds_accept_every_document(file: Path) -> None:
    documents, _ = read_yaml(file.read_text(), str(file))

    assert [document.title for document in documents if not is_accepted(document.value)] == []
