"""Local backends that are closed at the end of their test."""

from collections.abc import Iterator
from pathlib import Path

import pytest
from workbench import STAND_INS, Bench, Meet, Meeting, OpenBench

from fedpipe_operator.local import ProcessSettings


@pytest.fixture
def open_backend(tmp_path: Path) -> Iterator[OpenBench]:
    benches: list[Bench] = []

    def open_(max_concurrent: int = 2, processes: ProcessSettings = STAND_INS) -> Bench:
        benches.append(Bench(tmp_path / "run", max_concurrent=max_concurrent, processes=processes))
        return benches[-1]

    yield open_
    for bench in benches:
        bench.backend.close()


@pytest.fixture
def bench(open_backend: OpenBench) -> Bench:
    return open_backend()


@pytest.fixture
def meeting(tmp_path: Path) -> Meet:
    return lambda name: Meeting(tmp_path / name)
