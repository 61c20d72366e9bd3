"""Profiles that a site keeps on its own cache volume, so that nothing is measured twice.

A kept profile is valid for exactly the tenant, site, model, data, machine, software and parameters that its key was made
from. A file that is missing, damaged or of another version is measured again.
"""

import hashlib
import json
import logging
from pathlib import Path
from typing import Final

from fedpipe_trainer.cache_volume import advice
from fedpipe_trainer.contract import Outcome, ProfileResult, ProfileTask
from fedpipe_trainer.data import files_of
from fedpipe_trainer.kept_files import read_kept, write_kept

_LOG = logging.getLogger(__name__)

_METHOD: Final = 7
"""Changes with the way of measuring: older profiles are not used any more."""
_WITHOUT_EFFECT: Final = {
    "run",
    "round",
    "attempt",
    "model",
    "deadline_seconds",
    "result",
    "reuse",
    "probe_write",
    "probe_read",
    "basis",
    "run_labels",
    "contributors",
    "baseline_of",
}
"""The fields of a task that change nothing that is kept. All others count, also those that a later version adds. The run's namespace
and the model's fingerprint count apart; the bandwidth to the store and the state of the site's cache are found every time."""


def key(task: ProfileTask, *, fingerprint: str, machine: dict[str, str | int], memory_limit: int | None, software: dict[str, str]) -> str:
    """The identity of a profile, as a SHA-256: it differs whenever another measurement could be made.

    Raises:
        OSError: a data file cannot be read.
        TaskFailed: BadData, a folder cannot be used as data.
    """
    paths = [file for path in (task.data.train, task.data.validation) for file in files_of(Path(path))]
    files = [(str(file), stat.st_size, stat.st_mtime_ns) for file in paths for stat in [file.stat()]]
    parameters = task.model_dump(mode="json", exclude=_WITHOUT_EFFECT)
    parameters["attn_implementation"] = task.model.attn_implementation
    parameters["modules_to_save"] = task.model.modules_to_save
    parts = [_METHOD, task.run.namespace, parameters, fingerprint, files, machine, memory_limit, software]
    return hashlib.sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest()


def read(folder: Path, name: str) -> ProfileResult | None:
    """The profile of this key; None if there is none that can be used."""
    path = folder / f"{name}.json"
    try:
        profile = ProfileResult.model_validate_json(read_kept(path))
    except FileNotFoundError:
        return None
    except (OSError, ValueError) as error:  # the text of a validation error would quote the file
        _LOG.warning("the kept profile %s cannot be used, the site is measured again: %s", path, type(error).__name__)
        return None
    return profile if profile.outcome is Outcome.COMPLETED else None


def write(folder: Path, name: str, profile: ProfileResult) -> None:
    """Keep the profile. A folder that is full or read-only costs the next run a measurement, not this one its profile."""
    try:
        write_kept(folder / f"{name}.json", profile.to_json().encode())
    except OSError as error:
        problem = f"cannot write to {folder} ({error.strerror}): {advice(error)}"
        _LOG.warning("the profile is not kept, the next run measures again: %s", problem)
