import pytest

from fedpipe_operator.api import MetricName
from fedpipe_operator.formatting import (
    bytes_text,
    excerpt,
    metric_text,
    percent,
    ranges_text,
    rate_text,
    ratio_text,
    seconds_text,
    signed_text,
    whole_percent,
)


@pytest.mark.parametrize(
    ("bits_per_second", "text"),
    [
        (25.0, "25 bit/s"),
        (999.9, "1 kbit/s"),
        (2_670_000.0, "2.67 Mbit/s"),
        (94_200_000.0, "94.2 Mbit/s"),
        (1e9, "1 Gbit/s"),
        (4e11, "400 Gbit/s"),
        (None, "–"),
    ],
)
def test_a_bandwidth_has_three_digits_and_the_unit_that_suits_it(bits_per_second: float | None, text: str) -> None:
    assert rate_text(bits_per_second) == text


@pytest.mark.parametrize(
    ("count", "text"),
    [
        (0, "0 B"),
        (1023, "1023 B"),
        (1023.6, "1.00 KiB"),
        (1024, "1.00 KiB"),
        (1536 * 1024, "1.50 MiB"),
        (870 * 1024**2, "870 MiB"),
        (1_288_490_189, "1.20 GiB"),
        (17.25 * 1024**3, "17.2 GiB"),
        (5 * 1024**5, "5120 TiB"),
        (None, "–"),
    ],
)
def test_bytes_are_in_binary_units_with_three_digits(count: float | None, text: str) -> None:
    assert bytes_text(count) == text


@pytest.mark.parametrize(
    ("seconds", "text"),
    [
        (0.0, "0.0 s"),
        (0.0001, "1 ms"),
        (0.012, "12 ms"),
        (0.05, "0.1 s"),
        (8.44, "8.4 s"),
        (59.4, "59 s"),
        (59.7, "1 min"),
        (200, "3 min 20 s"),
        (432.0, "7 min 12 s"),
        (3599.7, "1 h"),
        (7500.0, "2 h 5 min"),
        (None, "–"),
    ],
)
def test_seconds_become_minutes_and_hours(seconds: float | None, text: str) -> None:
    assert seconds_text(seconds) == text


@pytest.mark.parametrize(
    ("metric", "value", "text"),
    [
        ("accuracy", 0.7841, "78.4 %"),
        ("slotErrorRate", 0.0123, "1.2 %"),
        ("perplexity", 4.205, "4.21"),
        ("bleu", 61.27, "61.3"),
        ("rougeL", 0.6661, "0.666"),
        ("preferenceAccuracy", 0.6125, "61.3 %"),
        ("rewardMargin", -0.01249, "-0.012"),
        ("loss", float("nan"), "–"),
        ("accuracy", None, "–"),
    ],
)
def test_each_metric_has_its_own_form(metric: MetricName, value: float | None, text: str) -> None:
    assert metric_text(metric, value) == text


@pytest.mark.parametrize(("value", "text"), [(0.0124, "+0.012"), (-1.5, "−1.500"), (None, "–")])
def test_a_difference_has_its_sign(value: float | None, text: str) -> None:
    assert signed_text(value) == text


def test_a_tiny_fraction_is_not_shown_as_zero() -> None:
    assert percent(0.0000123) == "0.0012 %"
    assert percent(0.0) == "0.0 %"


def test_a_fraction_in_whole_percent_is_rounded_down() -> None:
    assert [whole_percent(fraction) for fraction in (0, 0.284, 0.999, 1)] == ["0 %", "28 %", "99 %", "100 %"]


def test_a_ratio_has_two_digits_and_may_be_missing() -> None:
    assert ratio_text(1.0764) == "×1.08"
    assert ratio_text(None) == "–"


def test_consecutive_rounds_are_one_range() -> None:
    assert ranges_text([3, 1, 2, 5, 2]) == "1–3, 5"


def test_an_excerpt_is_one_printable_line_of_at_most_the_given_length() -> None:
    assert excerpt("a\n\t b\x1b[31m", 99) == "a b [31m"
    assert excerpt("abcdef", 4) == "abc…"
    assert excerpt("abcd", 4) == "abcd"
