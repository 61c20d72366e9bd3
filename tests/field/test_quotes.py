"""Quotes in tables: one too many does not take rows away without a word, and a text of many lines stays one row, whatever is in it."""

import csv
import io
import random
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Final

import pytest

from fedpipe_trainer.data.readers import BadRowError, read_records

Table = tuple[Sequence[str], int, Callable[[random.Random, int], list[str]]]
"""Its header, which column has the texts, and a row of it."""
WORDS: Final = ("the", "quick", "brown", "fox", "jumps", "over", "lazy", "dogs", "while", "rain", "falls", "on", "green", "hills")


def prose(chance: random.Random, words: int = 8, commas: float = 0.0) -> str:
    found = [f"{chance.choice(WORDS)}{',' * (chance.random() < commas)}" for _ in range(words)]
    return " ".join([*found, "end."])


TABLES: Final[dict[str, Table]] = {
    "text and label": (("text", "label"), 0, lambda chance, _: [prose(chance), chance.choice(["spam", "ham"])]),
    "label and text": (("label", "text"), 1, lambda chance, _: [chance.choice("01"), prose(chance)]),
    "sorted by label": (("text", "label"), 0, lambda chance, at: [prose(chance), ("negative", "positive")[at >= 150]]),
    "many labels": (("text", "label"), 0, lambda chance, _: [prose(chance), f"intent_{chance.randrange(77)}"]),
    "number, text and score": (("id", "text", "score"), 1, lambda chance, at: [str(at), prose(chance), f"{chance.random():.3f}"]),
    "text and score": (("text", "score"), 0, lambda chance, _: [prose(chance), f"{chance.random():.3f}"]),
    "texts and a date": (("id", "ask", "say", "day"), 2, lambda chance, at: [f"x{at}", prose(chance), prose(chance), f"2024-01-{at % 28}"]),
    "a field that may be empty": (
        ("text", "note", "label"),
        0,
        lambda chance, at: [prose(chance), "a note" * (at % 3), chance.choice("ab")],
    ),
}
TWO_TEXTS: Final[Table] = (("question", "answer"), 0, lambda chance, _: [prose(chance), prose(chance)])
TEXTS: Final[dict[str, Callable[[random.Random], list[str]]]] = {
    "prose": lambda chance: [prose(chance, 12, 0.08) for _ in range(chance.randint(2, 15))],
    "a letter": lambda chance: ["Dear A,", *(f"{chance.choice(WORDS)}, {chance.choice(WORDS)} Street" for _ in range(10)), "Yours"],
    "addresses": lambda chance: [f"{chance.choice(WORDS)}, {chance.choice(WORDS)}, {chance.randrange(99999)}" for _ in range(5)],
    "a poem": lambda chance: [*(f"{prose(chance, 4)}," for _ in range(12)), "the end"],
    "a program": lambda chance: [
        chance.choice(["f(a,b)", "x = [1,2]", "def f(x, y):", "return x,y"]) for _ in range(chance.randint(2, 12))
    ],
    "a table": lambda chance: ["name,age", *(f"{chance.choice(WORDS)},{chance.randrange(99)}" for _ in range(chance.randint(1, 12)))],
    "amounts": lambda chance: [*(f"it cost {chance.randint(1, 9)},{chance.randint(100, 999)}" for _ in range(6)), "in all"],
    "Chinese": lambda chance: [f"今天天气{chance.choice('很好')},我们出去" for _ in range(chance.randint(1, 12))],
    "a log": lambda chance: [f"2024-01-02 10:00:0{at},{chance.randint(100, 999)} INFO {prose(chance, 3)}" for at in range(9)],
    "lines of a word": lambda chance: [chance.choice(WORDS) for _ in range(12)],
}


def counted(path: Path, content: str) -> tuple[int, int]:
    """Good rows, and bad ones."""
    path.write_text(content)
    records = [record for _, record in read_records(path, ()).numbered]
    bad = [record for record in records if isinstance(record, BadRowError)]
    return len(records) - len(bad), sum(one.rows for one in bad)


def with_stray_quotes(table: Table, gap: int, seed: int) -> str:
    """A table of 300 rows in which a text begins with a quote, and one `gap` lines later ends with one."""
    header, text, row = table
    chance = random.Random(seed)  # noqa: S311 - not a secret
    rows = [row(chance, at) for at in range(300)]
    first = chance.randrange(5, 280)
    rows[first][text] = f'"{rows[first][text]}'
    rows[first + gap][text] += ' of 6"'
    return "".join(",".join(one) + "\n" for one in [header, *rows])


def with_texts(table: Table, lines: Callable[[random.Random], list[str]], share: float, seed: int) -> str:
    """A table of 60 rows, written by a writer of CSV, in which so many texts have several lines."""
    header, text, row = table
    chance = random.Random(seed)  # noqa: S311 - not a secret
    rows = [row(chance, at) for at in range(60)]
    for one in rows:
        if chance.random() < share:
            one[text] = "\n".join(lines(chance))
    written = io.StringIO()
    csv.writer(written).writerows([header, *rows])
    return written.getvalue()


@pytest.mark.parametrize("gap", [1, 2, 3, 6, 12])
@pytest.mark.parametrize("name", TABLES)
def test_the_rows_between_two_stray_quotes_are_counted_each(tmp_path: Path, name: str, gap: int) -> None:
    assert counted(tmp_path / "data.csv", with_stray_quotes(TABLES[name], gap, gap)) == (299 - gap, gap + 1)


@pytest.mark.parametrize("gap", [3, 6, 12])
def test_so_are_those_of_two_texts_from_four_lines_on(tmp_path: Path, gap: int) -> None:
    assert counted(tmp_path / "data.csv", with_stray_quotes(TWO_TEXTS, gap, 0)) == (299 - gap, gap + 1)


@pytest.mark.parametrize("share", [0.2, 1.0])
@pytest.mark.parametrize("kind", TEXTS)
def test_a_text_of_several_lines_is_one_row_whatever_its_lines_have(tmp_path: Path, kind: str, share: float) -> None:
    for table in (*TABLES.values(), TWO_TEXTS):
        assert counted(tmp_path / "data.csv", with_texts(table, TEXTS[kind], share, 0)) == (60, 0)


def test_two_quotes_at_the_beginning_and_end_of_neighbouring_rows_are_told(tmp_path: Path) -> None:
    lines = [f"note number {at} all well,{('red', 'blue')[at % 2]}\n" for at in range(300)]
    lines[100:102] = ['"note number 100,red\n', 'a pipe of 6",blue\n']

    assert counted(tmp_path / "data.csv", "".join(["text,label\n", *lines])) == (298, 2)


# What Excel and people write


@pytest.mark.parametrize("first", ["sep=;", "SEP=;", '"sep=;"', "\ufeffsep=;", "sep=;\r"])
def test_the_line_that_names_the_delimiter_to_excel_is_honoured(tmp_path: Path, first: str) -> None:
    path = tmp_path / "data.csv"
    path.write_text(f"{first}\nid;text\n1;a, b\nx;c; d\n", newline="")
    records = list(read_records(path, ("text",)).numbered)

    assert records[0] == (3, {"id": "1", "text": "a, b"})
    assert records[1][0] == 4
    assert isinstance(records[1][1], BadRowError)


@pytest.mark.parametrize("header", ["id, text, label", "id,text,label"])
def test_a_quote_may_follow_the_space_behind_a_delimiter(tmp_path: Path, header: str) -> None:
    path = tmp_path / "data.csv"
    path.write_text(f'{header}\n1, "hello, a", spam\n2, "b, c", ham\n')

    assert [record for _, record in read_records(path, ("text",)).numbered] == [
        {"id": "1", "text": "hello, a", "label": "spam"},
        {"id": "2", "text": "b, c", "label": "ham"},
    ]


def test_space_at_the_beginning_of_a_text_is_kept_where_no_header_has_it(tmp_path: Path) -> None:
    path = tmp_path / "data.csv"
    path.write_text("id,text\n1, indented\n2,not\n")

    assert [record["text"] for _, record in read_records(path, ("text",)).numbered if not isinstance(record, BadRowError)] == [
        " indented",
        "not",
    ]
