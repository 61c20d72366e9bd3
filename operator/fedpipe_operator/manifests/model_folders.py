"""A model `file:///…` on a cluster: a folder of the trainer's image, and none of what its pod mounts. Pure."""

import posixpath
from typing import Final
from urllib.parse import unquote, urlsplit

from fedpipe_operator.errors import UserError
from fedpipe_operator.manifests.jobs import CACHE_FOLDER, DATA_FOLDER, MODEL_FOLDER
from fedpipe_operator.manifests.pods import SCRATCH, TASK_FOLDER

_SCHEME: Final = "file://"
_NOT_OF_THE_IMAGE: Final = (DATA_FOLDER, CACHE_FOLDER, MODEL_FOLDER, TASK_FOLDER, SCRATCH, "/proc", "/sys", "/dev")
"""By /proc, a process sees every folder under another name."""


def require_folder_of_the_image(source: str) -> None:
    """Refuse a model in a folder where a trainer's pod has a site's data, its cache or a task: a run's author writes the path.

    Args:
        source: `spec.model.source`.

    Raises:
        UserError: `ModelFolderNotAllowed`.
    """
    if not source.startswith(_SCHEME):
        return
    # As a trainer reads it: as it is written, or as a URL; of the latter, an earlier one without what follows `?` or `#`.
    written = source.removeprefix(_SCHEME)
    if any(map(_is_mounted, (written, unquote(written), unquote(urlsplit(source).path)))):
        advice = "name a folder of the trainer's image, or a model hf://, s3:// or pvc://"
        raise UserError("ModelFolderNotAllowed", f"spec.model.source {source} is a folder that a trainer's pod mounts: {advice}")


def _is_mounted(written: str) -> bool:
    # A path may begin with two slashes after it is normalised.
    path = "/" + posixpath.normpath(written).lstrip("/")
    return any(path == folder or path.startswith(f"{folder}/") for folder in _NOT_OF_THE_IMAGE)
