"""Fixtures for several test folders: two S3 servers, started when the first test uses them. And how Hypothesis judges a test."""

import signal
from collections.abc import Iterator
from typing import TYPE_CHECKING

import pytest
from hypothesis import HealthCheck, settings

if TYPE_CHECKING:
    from s3_servers import Server

if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:  # inherited from a shell that starts pytest with `&`
    signal.signal(signal.SIGINT, signal.default_int_handler)

# A property holds or not, however busy the machine is. A change is judged by the same examples each time; the nightly form draws new ones.
settings.register_profile("random", deadline=None, suppress_health_check=[HealthCheck.too_slow])
settings.register_profile("same", settings.get_profile("random"), derandomize=True)
settings.load_profile("same")


@pytest.fixture(scope="session")
def moto() -> "Iterator[Server]":
    from s3_servers import running_moto  # noqa: PLC0415 - it takes a second, and most tests do not need it

    with running_moto() as server:
        yield server


@pytest.fixture(scope="session")
def nanio(tmp_path_factory: pytest.TempPathFactory) -> "Iterator[Server]":
    from s3_servers import running_nanio  # noqa: PLC0415 - likewise

    with running_nanio(tmp_path_factory.mktemp("nanio")) as server:
        yield server
