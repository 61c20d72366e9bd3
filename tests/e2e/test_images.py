"""The size of the images."""

import json
import os

import pytest
from testcluster.buildah import buildah
from testcluster.layout import default_layout

pytestmark = [pytest.mark.e2e, pytest.mark.independent]

UNITS = {"KB": 1e3, "MB": 1e6, "GB": 1e9}


@pytest.mark.usefixtures("disposable_cluster")
def test_the_operators_image_is_below_400_mb() -> None:
    (image,) = json.loads(buildah(default_layout(), "images", "--json", os.environ["FEDPIPE_OPERATOR_IMAGE"]))
    number, unit = image["size"].split()

    assert float(number) * UNITS[unit] < 400e6
