"""What all runs' objects take of the operator's memory: a share for each namespace, and of a run a bound for each site."""

import json
import tracemalloc
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fedpipe_operator.errors import UserError
from fedpipe_operator.memory_budget import Holding, MemoryBudget, bytes_in_memory, bytes_of
from fedpipe_trainer.contract import Wire

MIB = 2**20


def test_a_namespace_that_is_alone_has_half_of_the_budget() -> None:
    budget = MemoryBudget(100)
    budget.change("wards", 50)

    with pytest.raises(UserError, match="its share is 50 B") as caught:
        budget.change("wards", 1)

    assert caught.value.reason == "RecordsTooLarge"
    assert budget.held("wards") == 50


@given(st.integers(1, 20))
def test_of_many_that_want_all_each_has_the_same_and_one_that_comes_later_as_much(namespaces: int) -> None:
    budget = MemoryBudget(1000 * (namespaces + 1))
    for _ in range(1000):
        for number in range(namespaces):
            budget.change(f"tarpit-{number}", 1)

    for number in range(namespaces):
        with pytest.raises(UserError):
            budget.change(f"tarpit-{number}", 1)
    budget.change("wards", 500)


@given(st.lists(st.tuples(st.sampled_from("abc"), st.integers(-60, 100)), max_size=60))
def test_all_namespaces_together_never_hold_more_than_there_is(changes: list[tuple[str, int]]) -> None:
    budget = MemoryBudget(100)
    for namespace, by in changes:
        try:
            budget.change(namespace, max(by, -budget.held(namespace)))
        except UserError:
            continue
        assert sum(map(budget.held, "abc")) <= 100


def test_what_a_run_no_longer_needs_is_free_for_others() -> None:
    budget = MemoryBudget(100)
    run = Holding(budget, "wards")
    run.hold("plan", 30)
    run.hold("result", 20, site="north")
    run.hold("plan", 10)
    assert (budget.held("wards"), run.of_site("north"), run.of_site("south")) == (30, 20, 0)

    run.keep({"plan"})

    assert (budget.held("wards"), run.of_site("north")) == (10, 0)


def test_a_run_that_is_gone_holds_nothing_though_its_last_reconcile_still_reads() -> None:
    budget = MemoryBudget(100)
    run = Holding(budget, "wards")
    run.hold("plan", 30)

    run.close()
    run.hold("commit", 1000)

    assert budget.held("wards") == 0


class Record(Wire):
    """A record of any shape."""

    of: Any


@pytest.mark.parametrize(
    "value",
    [
        {f"model.layers.{number}.self_attn.q_proj": 8 for number in range(20_000)},
        {f"{number:x}": 1 for number in range(20_000)},
        [0.1234567 + number for number in range(20_000)],
        [[number, number] for number in range(10_000)],
        [{"rank": number, "scale": 0.5} for number in range(10_000)],
        ["word" * 20 for _ in range(10_000)],
    ],
)
def test_an_object_takes_about_what_was_estimated_before_it_was_parsed(value: object) -> None:
    data = json.dumps({"of": value}).encode()
    tracemalloc.start()
    record = Record.model_validate_json(data)
    taken, _ = tracemalloc.get_traced_memory()
    tracemalloc.stop()

    assert 0.8 * taken <= bytes_in_memory(data) <= 3 * taken
    assert bytes_of(record) >= 0.8 * taken
