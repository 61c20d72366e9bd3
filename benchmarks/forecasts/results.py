"""The measurements: one JSON file each, named by the configuration's key, so that a benchmark that was killed goes on.

A measurement contains no forecast. The table computes it anew from the profile, so that a change of the planner's models is judged by the
measurements that exist.
"""

import json
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Final

from configuration import Configuration, key_of
from machine import Load, Machine, site_of

from fedpipe_operator.sites import SiteProfile
from fedpipe_trainer.contract import Bits, ProfileResult, TrainResult

FOLDER: Final = Path(__file__).parent / "results"


@dataclass(frozen=True)
class Measurement:
    """What a training task of a configuration needed."""

    configuration: Configuration
    peak_memory_bytes: int
    seconds: dict[str, float]
    """By phase of the task."""
    steps: int
    adapter_bytes: int
    """The size of the update's file."""
    downloaded_bytes: int
    load: Load


def measured(configuration: Configuration) -> Measurement | None:
    """The stored measurement, or None."""
    path = FOLDER / f"{key_of(configuration)}.json"
    if not path.is_file():
        return None
    found = json.loads(path.read_text(encoding="utf-8"))
    return Measurement(**found | {"configuration": Configuration(**found["configuration"]), "load": Load(**found["load"])})


def profiled(work: str, clock: str, bits: Bits) -> tuple[SiteProfile, Load] | None:
    """The site as the profile of this bit width shows it, or None."""
    path = _profile_path(work, clock, bits)
    if not path.is_file():
        return None
    found = json.loads(path.read_text(encoding="utf-8"))
    return site_of(ProfileResult.model_validate(found["result"])), Load(**found["load"])


def profile(machine: Machine, work: str, bits: Bits) -> SiteProfile:
    """The site as the profile of this bit width shows it: from its file, otherwise measured and stored."""
    found = profiled(work, machine.clock, bits)
    if found is not None:
        return found[0]
    result, load = machine.profile(bits)
    _store(_profile_path(work, machine.clock, bits), {"load": asdict(load), "result": json.loads(result.to_json())})
    return site_of(result)


def measure(machine: Machine, configuration: Configuration, site: SiteProfile) -> Measurement:
    """The measurement: from its file, otherwise made and stored."""
    found = measured(configuration)
    if found is not None:
        return found
    made = _measurement(configuration, *machine.train(configuration, site))
    _store(FOLDER / f"{key_of(configuration)}.json", asdict(made))
    return made


def _measurement(configuration: Configuration, result: TrainResult, load: Load) -> Measurement:
    assert result.adapter is not None  # noqa: S101 - a training that succeeded has an update
    return Measurement(
        configuration=configuration,
        peak_memory_bytes=result.measured.peak_memory_bytes,
        seconds={phase: round(seconds, 4) for phase, seconds in result.measured.seconds.items()},
        steps=result.steps,
        adapter_bytes=result.adapter.size,
        downloaded_bytes=result.measured.downloaded_bytes,
        load=load,
    )


def _profile_path(work: str, clock: str, bits: Bits) -> Path:
    return FOLDER / f"profile-{work}-{clock}-{bits}-bits.json"


def _store(path: Path, content: dict[str, Any]) -> None:
    FOLDER.mkdir(exist_ok=True)
    partial = path.with_suffix(".partial")
    partial.write_text(json.dumps(content, indent=1) + "\n", encoding="utf-8")
    partial.rename(path)
