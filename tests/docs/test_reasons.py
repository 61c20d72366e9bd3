"""docs/reasons.md has a line for every reason that a user can see, and for no other: compared with the code in both directions."""

import ast
import re
from collections.abc import Iterator, Mapping
from pathlib import Path

import fedpipe_operator
from fedpipe_operator.admission import RefusalReason
from fedpipe_operator.api import ConditionType, Reason
from fedpipe_operator.api.conditions import SiteCondition
from fedpipe_operator.cluster.backend import FINAL
from fedpipe_operator.cluster.pod_diagnostics import _KILLED as KILLED
from fedpipe_operator.local.job_folder import CANNOT_RUN
from fedpipe_operator.rounds.revision import IMMUTABLE
from fedpipe_trainer.contract import ExitCode, FailureReason

PAGE = Path(__file__).parents[2] / "docs" / "reasons.md"
OPERATOR = Path(next(iter(fedpipe_operator.__path__)))

_REASON = re.compile(r"[A-Z][a-z]+(?:[A-Z][a-z]+)*")
_REASON_PREFIX = re.compile(r"([A-Z][a-z]+(?:[A-Z][a-z]+)+): ")
_REASON_AT = {
    "UserError": 0,
    "TransientError": 0,
    "_Rule": 1,
    "PodWaiting": 0,
    "PodEnd": 1,
    "Event": 0,
    "Observation": 2,
    "PoolProblem": 0,
    "End": 1,
}
"""The position of the reason among the arguments of a call of this name."""
_PASSED_ON = "Kubernetes' own words"
"""The section of reasons that Kubernetes gives and the operator passes on; none of them is in this code."""


def test_every_reason_of_the_code_has_a_line_and_every_line_has_a_reason_of_the_code() -> None:
    code = _listed_reasons() | _literal_reasons()
    lines = {word for title, words in _sections().items() if title != _PASSED_ON for word in words}

    assert sorted(code - lines) == []
    assert sorted(lines - code) == []


def test_every_exit_code_has_a_line_with_its_reason() -> None:
    lines = dict(re.findall(r"^\| (\d+) \| ([^|]*) \|", PAGE.read_text(), re.MULTILINE))
    words = {int(one.exit_code): str(one) for one in FailureReason}

    assert {int(code) for code in lines} == {*ExitCode, CANNOT_RUN, KILLED}
    assert {code: word for code, word in words.items() if f"`{word}`" not in lines[str(code)]} == {}


def test_final_failures_are_documented_as_final() -> None:
    lines = {int(code): line for code, line in re.findall(r"^\| (\d+) (\|.*)$", PAGE.read_text(), re.MULTILINE)}

    assert {code for code, line in lines.items() if "*final*" in line} == {code for code in ExitCode if code.is_final}
    assert {word for word in FINAL if not re.search(rf"^\| .*`{word}`.*\*final\*", PAGE.read_text(), re.MULTILINE)} == set()


def test_every_condition_has_a_line_in_its_section() -> None:
    sections = _sections()

    assert sections["The conditions of a run"] == {str(one) for one in ConditionType}
    assert sections["The conditions of a site"] >= {str(one) for one in SiteCondition}


def test_every_refusal_has_a_line_in_its_section() -> None:
    assert _sections()["A result that is refused"] == set(RefusalReason)


def test_the_documented_fixed_fields_are_those_of_the_code() -> None:
    (section,) = re.findall(r"^## What may change in a run\n(.*?)^## ", PAGE.read_text(), re.MULTILINE | re.DOTALL)

    assert set(re.findall(r"`spec\.([\w.]+)`", section)) == set(IMMUTABLE)


def test_links_within_the_page_have_a_target() -> None:
    headings = {re.sub(r"[^a-z0-9 -]", "", title.lower()).replace(" ", "-") for title in _sections()}

    assert set(re.findall(r"\]\(#([^)]+)\)", PAGE.read_text())) <= headings


def _sections() -> dict[str, set[str]]:
    """The reasons in the first column of each section's tables (of exit codes: in the second column)."""
    found: dict[str, set[str]] = {}
    for part in re.split(r"^#{2,3} ", PAGE.read_text(), flags=re.MULTILINE)[1:]:
        title, _, text = part.partition("\n")
        cells = re.findall(r"^\| (?:\d+ \| )?([^|]*) \|", text, re.MULTILINE)
        found[title] = {word for cell in cells for word in re.findall(r"`(\w+)`", cell)}
    return found


def _listed_reasons() -> set[str]:
    """The reasons that enums and tables of the code list: conditions, their reasons, the trainer's failures, the gate's refusals."""
    return {str(one) for kind in (ConditionType, SiteCondition, Reason, FailureReason, RefusalReason) for one in kind}


def _literal_reasons() -> set[str]:
    """The reasons in the code where one is given: as an argument, as the value of a name, or in front of a sentence."""
    modules = [ast.parse(file.read_text()) for file in OPERATOR.rglob("*.py")]
    public = {name: value for module in modules for name, value in _constants(module).items() if not name.startswith("_")}
    return {word for module in modules for word in _reasons_in(module, public | _constants(module))}


def _constants(module: ast.Module) -> dict[str, object]:
    return {name: value.value for name, value in _assignments(module.body) if isinstance(value, ast.Constant)}


def _reasons_in(module: ast.Module, constants: Mapping[str, object]) -> Iterator[str]:
    for node in ast.walk(module):
        for expression in _reason_expressions(node):
            for inner in ast.walk(expression):
                text = inner.value if isinstance(inner, ast.Constant) else constants.get(inner.id) if isinstance(inner, ast.Name) else None
                if isinstance(text, str) and _REASON.fullmatch(text):
                    yield text
        if isinstance(node, ast.Constant) and isinstance(node.value, str) and (found := _REASON_PREFIX.match(node.value)):
            yield found[1]


def _reason_expressions(node: ast.AST) -> Iterator[ast.expr]:
    """The expressions in this node that give a reason."""
    if isinstance(node, ast.Call):
        position = _REASON_AT.get(_last_name(node.func))
        yield from (argument for at, argument in enumerate(node.args) if at == position)
        yield from (keyword.value for keyword in node.keywords if keyword.arg == "reason")
    elif isinstance(node, ast.BoolOp) and any(_last_name(value) == "reason" for value in node.values):
        yield node
    elif isinstance(node, ast.stmt):
        yield from (value for name, value in _assignments([node]) if name.lower().strip("_") in ("reason", "reasons"))


def _assignments(statements: list[ast.stmt]) -> Iterator[tuple[str, ast.expr]]:
    """Names with the value that is assigned to each."""
    for node in statements:
        targets = node.targets if isinstance(node, ast.Assign) else [node.target] if isinstance(node, ast.AnnAssign) else []
        value = node.value if isinstance(node, ast.Assign | ast.AnnAssign) else None
        for target in targets if value is not None else []:
            pairs = (
                zip(target.elts, value.elts, strict=True)
                if isinstance(target, ast.Tuple) and isinstance(value, ast.Tuple)
                else [(target, value)]
            )
            yield from ((_last_name(one), assigned) for one, assigned in pairs)


def _last_name(node: ast.expr) -> str:
    return node.id if isinstance(node, ast.Name) else node.attr if isinstance(node, ast.Attribute) else ""
