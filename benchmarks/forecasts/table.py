"""Forecasts beside measurements, and how far they are apart."""

from collections.abc import Sequence
from dataclasses import dataclass
from statistics import median
from typing import Final

from configuration import WORKS, Configuration
from machine import forecast_plan
from results import Measurement, measured, profiled

_MEMORY_AIM: Final = 0.10
_SECONDS_AIM: Final = 0.15


@dataclass(frozen=True)
class Row:
    """A measurement and its forecast: (predicted, measured) of each quantity."""

    measurement: Measurement
    memory: tuple[float, float]
    step_seconds: tuple[float, float]
    """Of all steps."""
    seconds: tuple[float, float]
    """Of the whole task."""
    upload: tuple[float, float]
    download: tuple[float, float]


def rows_of(configurations: Sequence[Configuration]) -> list[Row]:
    """Those configurations that have been measured."""
    return [row for configuration in configurations if (row := _row(configuration)) is not None]


def _row(configuration: Configuration) -> Row | None:
    measurement, profile = measured(configuration), profiled(configuration.work, configuration.clock, configuration.bits)
    if measurement is None or profile is None:
        return None
    predicted = forecast_plan(WORKS[configuration.work], configuration, profile[0]).forecast
    return Row(
        measurement,
        memory=(predicted.memory_bytes, measurement.peak_memory_bytes),
        step_seconds=(predicted.step_seconds, measurement.seconds["train"]),
        seconds=(predicted.seconds, sum(measurement.seconds.values())),
        upload=(predicted.upload_bytes, measurement.adapter_bytes),
        download=(predicted.download_bytes, measurement.downloaded_bytes),
    )


def print_table(rows: Sequence[Row]) -> None:
    """A line for each measurement, and a summary."""
    print("| bits | micro-batch | layers | checkpointing | rank | memory, MB | steps, s | all, s | upload | download | other load |")
    print("|---:|---:|---:|---|---:|---|---|---|---:|---:|---:|")
    for row in rows:
        one = row.measurement.configuration
        cells = [one.bits, one.micro_batch, one.layers, "yes" if one.checkpointing else "no", one.rank]
        cells += [_pair(row.memory, 1e6, 0), _pair(row.step_seconds, 1, 2), _pair(row.seconds, 1, 1)]
        cells += [_bytes(row.upload), _bytes(row.download), f"{row.measurement.load.other_cores:.1f}"]
        print("| " + " | ".join(map(str, cells)) + " |")
    print()
    print("| quantity | configurations | median error | worst | within the aim |\n|---|---:|---:|---:|---:|")
    _summarise("memory, aim 10 %", [row.memory for row in rows], _MEMORY_AIM)
    _summarise("seconds of the steps, aim 15 %", [row.step_seconds for row in rows], _SECONDS_AIM)
    _summarise("seconds of the task, aim 15 %", [row.seconds for row in rows], _SECONDS_AIM)
    _summarise("bytes up, aim 0", [row.upload for row in rows], 0.0)
    _summarise("bytes down, aim 0", [row.download for row in rows], 0.0)


def print_profiles(configurations: Sequence[Configuration]) -> None:
    """What each profile took."""
    for work, clock, bits in dict.fromkeys((one.work, one.clock, one.bits) for one in configurations):
        found = profiled(work, clock, bits)
        if found is not None:
            load = found[1]
            seconds = f"{load.seconds:.0f} s, {load.cpu_seconds:.0f} s of the processor"
            print(f"Profile at {bits} bits: {seconds}; other processes used {load.other_cores:.1f} cores.")
    print()


def _summarise(name: str, pairs: Sequence[tuple[float, float]], aim: float) -> None:
    if not pairs:
        return
    errors = [predicted / actual - 1 for predicted, actual in pairs]
    worst = max(errors, key=abs)
    within = sum(abs(error) <= aim for error in errors)
    print(f"| {name} | {len(errors)} | {median(abs(error) for error in errors):.1%} | {worst:+.1%} | {within} |")


def _pair(pair: tuple[float, float], unit: float, digits: int) -> str:
    predicted, actual = pair
    return f"{predicted / unit:.{digits}f} / {actual / unit:.{digits}f} ({predicted / actual - 1:+.0%})"


def _bytes(pair: tuple[float, float]) -> str:
    predicted, actual = pair
    return f"{actual:.0f}" if predicted == actual else f"{predicted:.0f} / {actual:.0f}"
