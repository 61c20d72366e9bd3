"""Which processors a site's process may use."""

from fedpipe_operator.local.children import least_used


def test_sites_at_work_side_by_side_get_processors_of_their_own() -> None:
    first = least_used({0, 1, 2, 3}, [], 2)
    second = least_used({0, 1, 2, 3}, [first], 2)

    assert first == {0, 1}
    assert second == {2, 3}


def test_when_all_are_taken_the_least_used_are_shared() -> None:
    assert least_used({0, 1, 2}, [frozenset({0, 1}), frozenset({2}), frozenset({0})], 1) == {1}


def test_a_site_without_a_number_of_processors_may_use_all_of_ours() -> None:
    assert least_used({0, 5}, [frozenset({0})], None) == {0, 5}


def test_a_site_that_claims_more_than_there_are_gets_all() -> None:
    assert least_used({0, 1}, [], 64) == {0, 1}
