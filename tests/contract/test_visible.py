"""What a text may have that others are shown, character by character."""

import unicodedata
from typing import Final

import pytest

from fedpipe_operator.admission.document import clean_message
from fedpipe_operator.api.checks import _check_labels
from fedpipe_trainer.contract import does_more_than_show
from fedpipe_trainer.data.values import BadValueError, read_label

DIRECTIONS: Final = frozenset({"LRE", "RLE", "LRO", "RLO", "PDF", "LRI", "RLI", "FSI", "PDI"})
EVERY: Final = [chr(code) for code in range(0x10000)]
"""Of the first plane; Unicode has neither control characters nor changes of direction in the others."""
MORE: Final = [
    one
    for one in EVERY
    if (unicodedata.category(one) in ("Cc", "Cs") and one not in "\n\r\t") or unicodedata.bidirectional(one) in DIRECTIONS
]
"""Control characters, surrogates and changes of direction, by their classes in Unicode."""


def test_control_characters_surrogates_and_changes_of_direction_do_more_than_show() -> None:
    assert [one for one in EVERY if does_more_than_show(one)] == MORE


@pytest.mark.parametrize("text", ["", "naïve\u00a0x", "👩\u200d👩\u200d👧", "क्\u200dष", "שלום", "a\tb\r\nc"])
def test_a_text_of_any_script_shows_itself(text: str) -> None:
    assert not does_more_than_show(text)
    assert clean_message(text) == text


def test_one_such_character_among_others_is_enough_and_is_replaced_in_a_message() -> None:
    assert does_more_than_show("ham\u202eaps")
    assert clean_message("ham\u202eaps\n") == "ham\N{REPLACEMENT CHARACTER}aps\n"


def is_read(character: str) -> bool:
    """Whether a site's data may have it in a label."""
    try:
        read_label(f"a{character}b")
    except BadValueError:
        return False
    return True


def test_a_site_reads_no_label_that_the_operator_would_refuse_and_every_one_that_a_run_may_declare() -> None:
    declared = {one for one in EVERY if not list(_check_labels(["other", f"a{one}b"]))}
    admitted = {one for one in EVERY if not does_more_than_show(one)}
    surrogates = {one for one in EVERY if unicodedata.category(one) == "Cs"}

    assert declared - surrogates <= admitted
    assert {one for one in EVERY if is_read(one)} - surrogates == admitted
