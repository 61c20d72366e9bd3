"""The bandwidth to the store, measured with real transfers to a folder, and with transfers that take a chosen time."""

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
from toy_training import make_runtime

from fedpipe_trainer.contract import FailureReason
from fedpipe_trainer.errors import TaskFailed
from fedpipe_trainer.profiling.bandwidth import Bandwidth, measure

KIB = 1024
URL = "https://store.example/probe"
FAST: Any = pytest.approx(1e9)


@dataclass
class Link:
    """A runtime whose transfers go over a link of this many bytes per second, each after a delay, until one fails."""

    folder: Path
    bytes_per_second: float
    down_bytes_per_second: float | None = None
    """If it differs."""
    delay: float = 0.0
    fails_after: int = 10**9
    now: float = 0.0
    sizes: list[int] = field(default_factory=list)

    def elapsed_seconds(self) -> float:
        return self.now

    def upload(self, path: Path, url: str, *, attempts: int) -> None:
        assert (url, attempts) == (URL, 1)
        self._transfer(path.stat().st_size, self.bytes_per_second)

    def download(self, url: str, to: Path, *, attempts: int) -> None:
        assert (url, attempts, to.is_file()) == (URL, 1, True)
        self._transfer(to.stat().st_size, self.down_bytes_per_second or self.bytes_per_second)

    def _transfer(self, size: int, bytes_per_second: float) -> None:
        if len(self.sizes) == self.fails_after:
            raise TaskFailed(FailureReason.TRANSFER_FAILED, "the store answered 503")
        self.sizes.append(size)
        self.now += self.delay + size / bytes_per_second


def measured_over(link: Any) -> Bandwidth:
    return measure(link, URL, URL)


def test_a_fast_link_is_measured_with_the_largest_object(tmp_path: Path) -> None:
    link = Link(tmp_path, bytes_per_second=125e6)

    assert measured_over(link) == Bandwidth(up=pytest.approx(1e9), down=pytest.approx(1e9))
    assert link.sizes == [*both_ways(16, 64, 256, 1024, 4096, 8192), 0]


def both_ways(*kibibytes: int) -> list[int]:
    """The sizes of an upload and a download of each object, in bytes."""
    return [size * KIB for size in kibibytes for _ in "ud"]


@pytest.mark.parametrize("slow_direction", ["bytes_per_second", "down_bytes_per_second"])
@pytest.mark.parametrize(("kbit", "largest"), [(40, 16), (60, 64), (300, 256), (1000, 256), (5000, 1024)])
def test_a_slow_link_is_measured_with_small_objects_in_less_than_half_a_minute(
    tmp_path: Path, kbit: int, largest: int, slow_direction: str
) -> None:
    link = Link(tmp_path, **{"bytes_per_second": 125e6, slow_direction: kbit * 125})

    measured = measured_over(link)

    assert min(filter(None, (measured.up, measured.down))) == pytest.approx(kbit * 1000)
    assert link.sizes[-2] == largest * KIB
    assert link.now < 25


def test_no_transfer_of_a_large_object_is_expected_to_take_longer_than_two_seconds(tmp_path: Path) -> None:
    link = Link(tmp_path, bytes_per_second=1024 * KIB)

    measured_over(link)

    assert link.sizes == [*both_ways(16, 64, 256, 1024), 0]


def test_a_link_that_is_slow_to_connect_is_not_taken_for_a_slow_one(tmp_path: Path) -> None:
    link = Link(tmp_path, bytes_per_second=125e6, delay=0.7)

    assert measured_over(link).up == pytest.approx(8 * 256 * KIB / 0.7, rel=0.01)


def test_a_folder_is_measured_like_any_store_and_keeps_no_bytes(tmp_path: Path) -> None:
    probe = tmp_path / "store" / "probe"
    runtime = make_runtime(tmp_path / "scratch")

    link = measure(runtime, probe.as_uri(), probe.as_uri())

    assert link.up is not None
    assert link.down is not None
    assert min(link.up, link.down) > 0
    assert probe.read_bytes() == b""
    assert runtime.measured().downloaded_bytes >= 256 * KIB


@pytest.mark.parametrize(
    ("transfers", "expected"), [(0, Bandwidth()), (1, Bandwidth(up=FAST)), (2, Bandwidth(FAST, FAST)), (5, Bandwidth(FAST, FAST))]
)
def test_a_transfer_that_fails_costs_what_it_would_have_measured_only(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, transfers: int, expected: Bandwidth
) -> None:
    assert measured_over(Link(tmp_path, bytes_per_second=125e6, fails_after=transfers)) == expected
    assert "the store answered 503" in caplog.text


def test_without_urls_nothing_is_transferred(tmp_path: Path) -> None:
    assert measure(make_runtime(tmp_path), None, None) == Bandwidth()
