"""A run's author names a model's folder; none that leads to a site's data, however it is written."""

from pathlib import Path

import pytest
from stand_in_cluster import KubeWorld
from stand_in_runs import a_run

from fedpipe_operator.errors import UserError
from fedpipe_operator.manifests.model_folders import require_folder_of_the_image


@pytest.mark.parametrize(
    "source",
    [
        *("file:///data", "file:///data/model", "file:////data/model", "file:///%64ata/model", "file:///models/../data/model"),
        *("file:///x/%2e%2e/data", "file:///./data/model", "file:///data/../data/model", "file:///data/model?x", "file:///data#x"),
        *(
            "file:///cache/ward",
            "file:///task",
            "file:///scratch/x",
            "file:///model/x",
            "file:///proc/self/root/data",
            "file:///proc/1/cwd",
        ),
    ],
)
def test_a_model_is_in_no_folder_that_a_pod_mounts(source: str) -> None:
    with pytest.raises(UserError, match="is a folder that a trainer's pod mounts: name a folder of the trainer's image") as refused:
        require_folder_of_the_image(source)

    assert refused.value.reason == "ModelFolderNotAllowed"


@pytest.mark.parametrize(
    "source", ["file:///opt/models/toy", "file:///database/toy", "hf://data/task@main", "s3://data/model", "pvc://data/model"]
)
def test_a_folder_of_the_image_and_every_other_source_may_be_named(source: str) -> None:
    require_folder_of_the_image(source)


def test_a_run_whose_model_is_in_a_sites_data_is_blocked_with_a_sentence(tmp_path: Path) -> None:
    world = KubeWorld(tmp_path, a_run(model={"source": "file:///data/notes"}))

    with pytest.raises(Exception, match="ModelFolderNotAllowed"):
        world.reconcile()

    assert world.condition("Progressing")["reason"] == "ModelFolderNotAllowed"
    assert world.jobs() == []
