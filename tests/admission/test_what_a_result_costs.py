"""What a wrong result costs the operator: about its own size, however many of its values are wrong and of whatever kind they are.

Measured in a process of its own: what is freed before an operator looks again shows in no sum of its objects.
"""

import subprocess
import sys
from typing import Final

import pytest

MIB: Final = 2**20
MOST: Final = 40
"""MiB of memory, at most, for a result of 1 MiB; before there was a bound, some took a thousand."""
PROGRAM: Final = """
import resource, sys
from contextlib import suppress
from fedpipe_operator.admission import Asked, RefusedError, UpdateBounds, admit_profile, admit_update
from fedpipe_operator.rounds.records import RoundPlan
from fedpipe_operator.store.objects import decode_object
from fedpipe_trainer.contract import Forecast, Plan, RunRef

def peak():
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024

PLAN = '{"round":1,"startedAt":0,"fingerprint":"f","selected":[],"evaluators":[],"needed":1,'
start, item, separator, end, admit = sys.argv[1:6]
start = start.replace("{PLAN,", PLAN)
count, asked = int(sys.argv[6]), Asked(RunRef(namespace="default", name="toy", uid="1"), "ward", 0, 0)
data = (start + separator.join(item.replace("#", str(number)) for number in range(count)) + end).encode()
forecast = Forecast(memory_bytes=1, seconds=1.0, upload_bytes=1, download_bytes=1)
plan = Plan(bits=32, batch_size=1, steps=10**6, ranks={"q": 1}, forecast=forecast)
with suppress(RefusedError):  # everything is loaded before anything is measured
    admit_profile(b'{"throughput": [{}], "labels": [1]}', asked)
before = peak()
kinds = {
    "profile": lambda: admit_profile(data, asked),
    "update": lambda: admit_update(data, asked, UpdateBounds(plan, "f" * 64)),
    "record": lambda: decode_object(data, RoundPlan),
}
try:
    kinds[admit]()
except (RefusedError, ValueError):
    print(peak() - before)
"""


def cost(start: str, item: str, end: str, count: int, admit: str = "profile") -> float:
    """MiB that this refused result took."""
    command = [sys.executable, "-c", PROGRAM, start, item, ",", end, admit, str(count)]
    return float(subprocess.run(command, check=True, capture_output=True, text=True).stdout)


@pytest.mark.parametrize(
    ("start", "item", "end"),
    [
        ('{"throughput":[', "{}", "]}"),
        ('{"base":{"weights":[', "{}", "]}}"),
        ('{"labels":[', "1", "]}"),
        ('{"importance":{"firstHalf":{', '"#":[]', "}}}"),
        ("{", '"#":[]', "}"),
        ('{"measured":{', '"#":1', "}}"),
        ("[", "[]", "]"),
    ],
)
def test_a_profile_of_wrong_values_of_any_kind_costs_about_its_own_size(start: str, item: str, end: str) -> None:
    longest = len(item) + 1 + (5 if "#" in item else 0)

    for count in (50_000, MIB // longest - 100):
        assert cost(start, item, end, count) < MOST


@pytest.mark.parametrize(("start", "item", "end"), [('{"losses":[', "[]", "]}"), ("{", '"#":[]', "}"), ("[", "{}", "]")])
def test_an_update_of_a_million_steps_has_room_for_its_losses_and_not_for_as_many_objects(start: str, item: str, end: str) -> None:
    """The author of a run chooses its steps, and may write such a result into its bucket: 33 MB of small objects took 5 GB."""
    assert cost(start, item, end, 2_400_000, "update") < 3 * MOST


@pytest.mark.parametrize(
    ("start", "item", "end"),
    [
        ('{PLAN,"plans":{},"weights":{', '"#":[1,1]', "}}"),
        ('{PLAN,"plans":{},"weights":{},"importance":{', '"#":1', "}}"),
        ('{PLAN,"plans":{},"weights":{},"corrections":{', '"#":{}', "}}"),
    ],
)
def test_a_record_as_long_as_any_that_is_read_costs_no_gigabyte_if_all_of_it_is_valid(start: str, item: str, end: str) -> None:
    """Who has the bucket's key pair may write one in the operator's place: 29 MB of weights took 1.3 GB, and most of it stayed."""
    assert cost(start, item, end, 29 * MIB // (len(item) + 8), "record") < 100


def test_a_record_of_a_million_unknown_fields_costs_no_gigabytes() -> None:
    """Who has the bucket's key pair may write one in the operator's place: it took 2.7 GB."""
    assert cost("{", '"#":[]', "}", 1_000_000, "record") < 500
