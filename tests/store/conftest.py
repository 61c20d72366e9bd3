"""Three stores that must behave the same: a directory and two S3 servers."""

from itertools import count
from pathlib import Path

import pytest
from s3_servers import Server

from fedpipe_operator.store import DirectoryStore, Store

_numbers = count()


@pytest.fixture(params=["directory", "moto", "nanio"])
def store(request: pytest.FixtureRequest, tmp_path: Path) -> Store:
    if request.param == "directory":
        return DirectoryStore(tmp_path / "store")
    server: Server = request.getfixturevalue(request.param)
    return server.store(f"runs/{next(_numbers)}")
