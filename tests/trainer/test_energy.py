"""The energy meter, on folders like those of Linux and on counters that wrap around."""

from pathlib import Path

import pytest
import torch

from fedpipe_trainer.profiling.energy import meter, rapl_meter


def zone(folder: Path, name: str, *, energy_uj: int, max_energy_range_uj: int = 10_000_000) -> Path:
    """A zone of the kernel's powercap folder; the counter wraps around after 10 joules."""
    folder.mkdir(parents=True, exist_ok=True)
    for file, content in (("name", name), ("energy_uj", energy_uj), ("max_energy_range_uj", max_energy_range_uj)):
        (folder / file).write_text(f"{content}\n")
    return folder / "energy_uj"


def test_energy_is_counted_from_one_reading_to_the_next(tmp_path: Path) -> None:
    counter = zone(tmp_path / "intel-rapl:0", "package-0", energy_uj=1_000_000)
    energy = rapl_meter(tmp_path)

    counter.write_text("3500000")
    first = energy.joules()
    counter.write_text("4000000")

    assert (first, energy.joules()) == (2.5, 0.5)
    assert energy.source == "RAPL"


def test_a_counter_that_wrapped_around_goes_on_from_zero(tmp_path: Path) -> None:
    counter = zone(tmp_path / "intel-rapl:0", "package-0", energy_uj=9_000_000)
    energy = rapl_meter(tmp_path)

    counter.write_text("500000")

    assert energy.joules() == 1.5


def test_all_packages_are_added_and_no_part_of_one_is_counted_twice(tmp_path: Path) -> None:
    zones = {"intel-rapl:0": "package-0", "intel-rapl:1": "package-1", "intel-rapl:0:0": "core", "intel-rapl:2": "psys"}
    counters = [zone(tmp_path / folder, name, energy_uj=0) for folder, name in zones.items()]
    energy = rapl_meter(tmp_path)

    for counter in counters:
        counter.write_text("2000000")

    assert energy.joules() == 4.0


def test_a_platform_without_counters_has_no_energy(tmp_path: Path) -> None:
    assert rapl_meter(tmp_path / "absent").joules() is None


@pytest.mark.parametrize("content", ["", "not a number"])
def test_a_counter_that_cannot_be_read_is_no_energy_and_not_zero(tmp_path: Path, content: str) -> None:
    counter = zone(tmp_path / "intel-rapl:0", "package-0", energy_uj=0)
    energy = rapl_meter(tmp_path)
    counter.write_text(content)

    assert energy.joules() is None


def test_a_counter_that_does_not_advance_is_no_energy(tmp_path: Path) -> None:
    zone(tmp_path / "intel-rapl:0", "package-0", energy_uj=7)

    assert rapl_meter(tmp_path).joules() is None


def test_this_machine_has_a_meter_whether_or_not_it_shows_energy() -> None:
    joules = meter(torch.device("cpu")).joules()

    assert joules is None or joules > 0
