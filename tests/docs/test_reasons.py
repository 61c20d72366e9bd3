"""docs/reasons.md has a line for every word that a user can meet, and for no other: held against the code in both directions."""

import ast
import re
from collections.abc import Iterator
from pathlib import Path

import fedpipe_operator
from fedpipe_operator.aggregation import refusals
from fedpipe_operator.api import ConditionType, Reason
from fedpipe_operator.api.conditions import SiteCondition
from fedpipe_operator.cluster.backend import FINAL
from fedpipe_operator.cluster.pod_diagnostics import _KILLED as KILLED
from fedpipe_operator.local.exit_status import CANNOT_RUN
from fedpipe_operator.rounds.revision import FIXED
from fedpipe_trainer.contract import ExitCode, FailureReason

PAGE = Path(__file__).parents[2] / "docs" / "reasons.md"
OPERATOR = Path(next(iter(fedpipe_operator.__path__)))

_WORD = re.compile(r"[A-Z][a-z]+(?:[A-Z][a-z]+)*")
_WORD_IN_FRONT = re.compile(r"([A-Z][a-z]+(?:[A-Z][a-z]+)+): ")
_REASON_AT = {"UserError": 0, "TransientError": 0, "_Rule": 1, "Waiting": 0, "Ending": 1, "Event": 0, "Told": 2, "Misfit": 0, "End": 1}
"""Where a call of this name has the reason."""
_PASSED_ON = "Kubernetes' own words"
"""The section of words that Kubernetes has and the operator passes on; none of them is in our code."""


def test_every_word_of_the_code_has_a_line_and_every_line_has_a_word_of_the_code() -> None:
    code = _enumerated() | _spelled()
    lines = {word for title, words in _sections().items() if title != _PASSED_ON for word in words}

    assert sorted(code - lines) == []
    assert sorted(lines - code) == []


def test_every_exit_code_has_a_line_with_its_word() -> None:
    lines = dict(re.findall(r"^\| (\d+) \| ([^|]*) \|", PAGE.read_text(), re.MULTILINE))
    words = {int(one.exit_code): str(one) for one in FailureReason}

    assert {int(code) for code in lines} == {*ExitCode, CANNOT_RUN, KILLED}
    assert {code: word for code, word in words.items() if f"`{word}`" not in lines[str(code)]} == {}


def test_what_is_final_is_said_to_be() -> None:
    lines = {int(code): line for code, line in re.findall(r"^\| (\d+) (\|.*)$", PAGE.read_text(), re.MULTILINE)}

    assert {code for code, line in lines.items() if "*final*" in line} == {code for code in ExitCode if code.is_final}
    assert {word for word in FINAL if not re.search(rf"^\| .*`{word}`.*\*final\*", PAGE.read_text(), re.MULTILINE)} == set()


def test_every_condition_has_a_line_where_it_belongs() -> None:
    sections = _sections()

    assert sections["The conditions of a run"] == {str(one) for one in ConditionType}
    assert sections["The conditions of a site"] >= {str(one) for one in SiteCondition}


def test_every_refusal_has_a_line_where_it_belongs() -> None:
    assert _sections()["An update that is refused"] == refusals.REASONS.keys()


def test_the_fields_that_may_not_change_are_those_of_the_code() -> None:
    (section,) = re.findall(r"^## What may change in a run\n(.*?)^## ", PAGE.read_text(), re.MULTILINE | re.DOTALL)

    assert set(re.findall(r"`spec\.([\w.]+)`", section)) == set(FIXED)


def test_links_within_the_page_lead_somewhere() -> None:
    headings = {re.sub(r"[^a-z0-9 -]", "", title.lower()).replace(" ", "-") for title in _sections()}

    assert set(re.findall(r"\]\(#([^)]+)\)", PAGE.read_text())) <= headings


def _sections() -> dict[str, set[str]]:
    """The words in the first column of each section's tables (exit codes have theirs in the second)."""
    found: dict[str, set[str]] = {}
    for part in re.split(r"^#{2,3} ", PAGE.read_text(), flags=re.MULTILINE)[1:]:
        title, _, text = part.partition("\n")
        cells = re.findall(r"^\| (?:\d+ \| )?([^|]*) \|", text, re.MULTILINE)
        found[title] = {word for cell in cells for word in re.findall(r"`(\w+)`", cell)}
    return found


def _enumerated() -> set[str]:
    """The words that are listed in the code: conditions, their reasons, the trainer's failures, the gate's refusals."""
    return {str(one) for kind in (ConditionType, SiteCondition, Reason, FailureReason) for one in kind} | refusals.REASONS.keys()


def _spelled() -> set[str]:
    """The words that stand in the code where a reason is given: to a call, to a name, or in front of a sentence."""
    return {word for file in OPERATOR.rglob("*.py") for word in _words_of(ast.parse(file.read_text()))}


def _words_of(module: ast.Module) -> Iterator[str]:
    constants = {name: value.value for name, value in _assigned(module.body) if isinstance(value, ast.Constant)}
    for node in ast.walk(module):
        for given in _given(node):
            for inner in ast.walk(given):
                text = inner.value if isinstance(inner, ast.Constant) else constants.get(inner.id) if isinstance(inner, ast.Name) else None
                if isinstance(text, str) and _WORD.fullmatch(text):
                    yield text
        if isinstance(node, ast.Constant) and isinstance(node.value, str) and (told := _WORD_IN_FRONT.match(node.value)):
            yield told[1]


def _given(node: ast.AST) -> Iterator[ast.expr]:
    """The expressions in this node that are reasons."""
    if isinstance(node, ast.Call):
        place = _REASON_AT.get(_last_name(node.func))
        yield from (argument for at, argument in enumerate(node.args) if at == place)
        yield from (keyword.value for keyword in node.keywords if keyword.arg == "reason")
    elif isinstance(node, ast.BoolOp) and any(_last_name(value) == "reason" for value in node.values):
        yield node
    elif isinstance(node, ast.stmt):
        yield from (value for name, value in _assigned([node]) if name.lower().strip("_") in ("reason", "reasons"))


def _assigned(statements: list[ast.stmt]) -> Iterator[tuple[str, ast.expr]]:
    """Names and what each is set to."""
    for node in statements:
        targets = node.targets if isinstance(node, ast.Assign) else [node.target] if isinstance(node, ast.AnnAssign) else []
        value = node.value if isinstance(node, ast.Assign | ast.AnnAssign) else None
        for target in targets if value is not None else []:
            pairs = (
                zip(target.elts, value.elts, strict=True)
                if isinstance(target, ast.Tuple) and isinstance(value, ast.Tuple)
                else [(target, value)]
            )
            yield from ((_last_name(one), given) for one, given in pairs)


def _last_name(node: ast.expr) -> str:
    return node.id if isinstance(node, ast.Name) else node.attr if isinstance(node, ast.Attribute) else ""
