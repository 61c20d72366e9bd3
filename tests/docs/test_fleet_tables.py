"""The tables of benchmarks/fleet/README.md are what its stored results say, and every stored result is of a run that a sweep names."""

import json
from typing import Final

from fleet_benchmark import FLEET, ROOT, output_of

_KEYS: Final = """
import sys
sys.path[:0] = [sys.argv[1], sys.argv[2]]
from configuration import key_of
from sweeps import SWEEPS
print(*(key_of(one) for sweep in SWEEPS.values() for one in sweep().values()))
"""


def test_the_readme_has_the_tables_of_what_is_stored() -> None:
    assert output_of(str(FLEET), "readme") == (FLEET / "README.md").read_text(encoding="utf-8")


def test_every_stored_result_is_of_a_run_that_a_sweep_names() -> None:
    keys = output_of("-c", _KEYS, str(FLEET), str(ROOT / "examples")).split()

    stored = {file.stem: json.loads(file.read_text(encoding="utf-8"))["name"] for file in (FLEET / "results").glob("*.json")}

    assert {key: name for key, name in stored.items() if key not in keys} == {}
