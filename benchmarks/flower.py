"""Measures Flower's averaging, for comparison in `aggregate.py`. Each function takes the arrays and samples of every site.

Flower is imported inside the functions, because its imports would add to the memory of the other measurements.
"""

# ruff: noqa: PLC0415 (see above)

import os
from collections.abc import Iterable
from pathlib import Path

import numpy as np
from clock import Clock

Update = tuple[list[np.ndarray], int]
Serialised = tuple[list[bytes], int]


def from_arrays(updates: Iterable[Update]) -> Clock:
    """Only its averaging function, from arrays in memory to arrays in memory."""
    from flwr.server.strategy.aggregate import aggregate

    results = list(updates)
    with Clock() as clock:
        aggregate(results)
    return clock


def from_bytes(updates: Iterable[Update]) -> Clock:
    """Its default strategy, as its server calls it, from serialised updates to the serialised average, both in memory."""
    serialised = [_serialise(update) for update in updates]
    _average([])  # imports Flower before the measurement
    with Clock() as clock:
        _average(serialised)
    return clock


def from_files(updates: Iterable[Update], folder: Path) -> Clock:
    """The same from one file per site to a file."""
    sites = []
    for number, (blobs, samples) in enumerate(map(_serialise, updates)):
        path = folder / f"flower-{number:03}"
        path.write_bytes(b"".join(blobs))
        sites.append((path, [len(blob) for blob in blobs], samples))
    os.sync()  # as before the other measurements
    _average([])  # imports Flower before the measurement
    with Clock() as clock:
        average = _average([(_read(path, lengths), samples) for path, lengths, samples in sites])
        with (folder / "flower-global").open("wb") as file:
            file.writelines(average)
    for path, _lengths, _samples in sites:
        path.unlink()
    return clock


def _serialise(update: Update) -> Serialised:
    from flwr.common import ndarrays_to_parameters

    arrays, samples = update
    return ndarrays_to_parameters(arrays).tensors, samples


def _read(path: Path, lengths: list[int]) -> list[bytes]:
    with path.open("rb", buffering=0) as file:
        return [file.read(length) for length in lengths]


def _average(serialised: list[Serialised]) -> list[bytes]:
    from flwr.common import Code, FitRes, Parameters, Status
    from flwr.server.strategy import FedAvg

    status = Status(Code.OK, "")
    results = [(None, FitRes(status, Parameters(blobs, "numpy.ndarray"), samples, {})) for blobs, samples in serialised]
    parameters, _ = FedAvg(fit_metrics_aggregation_fn=lambda _metrics: {}).aggregate_fit(1, results, [])
    return parameters.tensors if parameters else []
