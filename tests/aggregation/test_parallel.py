"""Parallel work with ordered results."""

import threading
from collections.abc import Iterator

import pytest

from fedpipe_operator.aggregation.parallel import ordered_parallel_map


def test_results_are_in_the_order_of_the_items_even_if_the_first_ends_last() -> None:
    second_done = threading.Event()

    def work(item: int) -> int:
        if item == 0:
            assert second_done.wait(60)
        if item == 1:
            second_done.set()
        return item * 10

    assert list(ordered_parallel_map(work, range(6), threads=2)) == [0, 10, 20, 30, 40, 50]


def test_at_most_one_item_more_than_threads_is_taken_before_the_first_result() -> None:
    taken: list[int] = []

    def items() -> Iterator[int]:
        for item in range(10):
            taken.append(item)
            yield item

    results = ordered_parallel_map(lambda item: item, items(), threads=2)
    next(results)

    assert taken == [0, 1, 2]
    results.close()  # type: ignore[attr-defined]  # a generator, as every caller uses it


def test_an_exception_is_raised_at_the_position_of_its_item() -> None:
    def work(item: int) -> int:
        if item == 1:
            raise ValueError("item 1")
        return item

    results = ordered_parallel_map(work, range(4), threads=2)

    assert next(results) == 0
    with pytest.raises(ValueError, match="item 1"):
        next(results)
