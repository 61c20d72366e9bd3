"""docs/security.md names the test that holds each promise and each line of the threat list: every one of them exists.

Tests are found by parsing their files: importing them would need what each of them needs.
"""

import ast
import re
import tomllib
from functools import cache
from pathlib import Path
from typing import Any, Final

import pytest
import yaml

ROOT: Final = Path(__file__).parents[2]
PAGE: Final = ROOT / "docs" / "security.md"
POLICY: Final = ROOT / "SECURITY.md"

REFERENCE: Final = re.compile(r"tests/[\w/]+\.py(?:::\w+)?")
PARTS: Final = ("Protects", "How", "Setting", "Limits", "Tests")
"""What is said of each promise, in this order."""

THREATS: Final = (
    # From a site
    "`samples: 1e12` makes the global model this site's",
    "An update far longer than a usual one passes the only bound",
    "Two components that cancel up to one ulp pass with norm 0",
    "`B = 0, A = 1e30` passes where A and B are averaged apart",
    "NaN, infinities, 1e400, denormals and huge texts in any number or key",
    "An exception in `decide`, or a failed aggregation, by what a site sent",
    "One site ends a run whose quorum did not need it",
    "Accuracy 2.0 with 1e15 samples is the run's metric",
    "Accuracy 0.95 of one site reaches the target in round 1",
    "512 targets a sample make the reported loss and perplexity this site's",
    "The identity of profiles and evaluations is not checked",
    "Facts of the model come from the first site",
    "Labels are a union without limit",
    "A result of 40 MB costs memory, an object of gigabytes the disk",
    "A safetensors header of 39 MB costs a gigabyte",
    "A profile of 0.5 MB of empty objects costs a gigabyte",
    "10^12 rows of a profile, or 1000 samples of a range test, decide the plans of all",
    "The loss of one site makes a run stall",
    "A result that is overwritten after it was seen fails the run",
    "Presigned PUTs fix neither size nor hash, and outlive the commit",
    # From a run author
    "The operator's own identity signs the bucket that the spec names",
    "The operator's session token goes to any endpoint",
    "`task.label: text` makes every private text a label",
    "An unknown label or a CSV without a header is quoted in messages",
    "`evaluation.samples: 20` ships rows by the run's choice",
    "A selector that matches one site makes its adapter the aggregate",
    "A store that answers one byte a second holds a thread for ever",
    "Eight such runs stop the operator for all namespaces",
    "A store that never ends fills the operator's memory",
    "A result or record that a run's author writes into the bucket costs gigabytes",
    "A record of 29 MB, all of it valid, costs 1.3 GB, and most of that stays as long as its run",
    "Results and records of many runs, each within its bounds, fill the operator's memory together",
    "A worker process takes the memory of the container, and the kernel ends the operator",
    "Slow worker processes of six namespaces keep all others waiting for a day",
    "The trial of an export names so many files that the export can never be started, after all rounds",
    "Long keys without number are listed and kept",
    "Megabytes of XML without a key are parsed page after page",
    "An answer of 4 MB takes terabytes when it is parsed: its document type gives each element an attribute of a megabyte",
    "What the API server refuses for one site's Job keeps the other sites from their work",
    "A plan of 10^12 steps has a result of any size read",
    "A plan that is changed after the sites trained takes back what they were promised",
    "A global adapter, or an adapter larger than its result says, fills the disk of the operator's pod",
    "The name of a field in a record of a megabyte is the message of status, events and log",
    "A deadline of 25 days or more lets worker processes run without limits",
    "A bucket of the same name elsewhere gives sites a model for other runs",
    "Link-local and in-cluster addresses are called",
    "A foreign Job with our labels restarts the operator",
    "Two runs and sites whose derived names collide exchange tasks",
    "A run mounts a site's data claim as a model",
    "`podTemplate` mounts hostPath, another site's task Secret or claim, any Secret",
    "`podTemplate` chooses node, system priority classes, the trainer's image",
    # By default
    "`get` on all Secrets and `create` on all Jobs of the cluster",
    "No NetworkPolicy",
    "No SECURITY.md",
    "`trust_remote_code` is left unset, and transformers asks on stdin",
    # What held
    "Offsets, overlaps, holes, types and sizes of safetensors",
    "Unknown and missing keys, NaN in tensors, hashes",
    "A URL moved to another key, verb or listing",
    "Privileged pods, host namespaces, service accounts and tokens, root",
    "The store's Secret by variable or volume",
    "Hostile text in the HTML report",
    "`..`, absolute and NUL paths",
    "Pickles and custom code of known model types",
    "URLs never in logs",
)
"""What was found by trying, and what held when it was tried: a line is never taken from the page."""
OPEN: Final[set[str]] = set()
"""Lines that no test holds yet; the page says so."""


@cache
def names_of_tests(file: str) -> frozenset[str]:
    """The names of the tests in a file; none if there is no such file."""
    path = ROOT / file
    body = ast.parse(path.read_text()).body if path.is_file() else []
    return frozenset(one.name for one in body if isinstance(one, ast.FunctionDef) and one.name.startswith("test_"))


def section(title: str) -> str:
    """The text under a title of the second level."""
    return PAGE.read_text().partition(f"\n## {title}\n")[2].partition("\n## ")[0]


def promises() -> dict[str, str]:
    """What is said of each promise, by its title."""
    parts = re.split(r"^### (.*)$", section("What is promised"), flags=re.MULTILINE)[1:]
    return dict(zip(parts[::2], parts[1::2], strict=True))


def threats() -> dict[str, str]:
    """What holds each line of the threat list."""
    rows = re.findall(r"^\| (.+) \| (.+) \|$", section("What was found by trying"), re.MULTILINE)
    return {line: held for line, held in rows if (line, held) != ("what", "held by")}


def test_every_test_that_the_page_names_exists() -> None:
    named = REFERENCE.findall(PAGE.read_text())
    missing = [one for one in named if one.partition("::")[2] not in names_of_tests(one.partition("::")[0]) and "::" in one]
    no_file = [one for one in named if not (ROOT / one.partition("::")[0]).is_file()]

    assert len(named) > 100
    assert (missing, no_file) == ([], [])


def test_no_test_is_named_by_its_file_alone_in_a_promise_or_a_line_of_the_threat_list() -> None:
    named = [one for text in (*promises().values(), *threats().values()) for one in REFERENCE.findall(text)]

    assert [one for one in named if "::" not in one] == []


def test_the_threat_list_is_complete() -> None:
    assert tuple(threats()) == THREATS


def test_every_line_of_the_threat_list_has_a_test_or_says_that_it_is_open() -> None:
    without = {line for line, held in threats().items() if not REFERENCE.search(held)}

    assert without == OPEN
    assert {held for line, held in threats().items() if line in without} <= {"*open*"}


@pytest.mark.parametrize("title", promises())
def test_a_promise_says_what_it_protects_how_its_setting_its_limits_and_its_tests(title: str) -> None:
    text = promises()[title]

    assert re.findall(r"^\* \*\*(\w+):\*\* ", text, re.MULTILINE) == list(PARTS)
    assert REFERENCE.findall(text.partition("**Tests:**")[2])


@pytest.mark.parametrize("page", [PAGE, POLICY], ids=lambda page: page.name)
def test_every_link_leads_somewhere(page: Path) -> None:
    for target in re.findall(r"\]\(([^)]+)\)", page.read_text()):
        path, _, anchor = target.partition("#")
        file = page.parent / path if path else page
        titles = re.findall(r"^#+ (.*)$", file.read_text(), re.MULTILINE) if file.suffix == ".md" else []

        assert file.exists(), target
        assert not anchor or anchor in {re.sub(r"[^\w -]", "", title.lower()).replace(" ", "-") for title in titles}, target


def test_the_defaults_on_the_page_are_those_of_the_crds() -> None:
    stated = dict(re.findall(r"^\| `(\S+)` \| (\S+) \|$", section("Defaults"), re.MULTILINE))

    assert stated
    assert stated == {path: str(default(path)).lower() if isinstance(default(path), bool) else str(default(path)) for path in stated}


def default(path: str) -> Any:
    """The default of a field of a spec."""
    kind = "edgesites" if path.startswith("policy.") else "federatedfinetunes"
    crd = yaml.safe_load((ROOT / "crds" / f"{kind}.yaml").read_text())
    schema = crd["spec"]["versions"][0]["schema"]["openAPIV3Schema"]["properties"]["spec"]
    for name in path.split("."):
        schema = schema["properties"][name]
    return schema.get("default")


def test_security_md_says_how_to_report_and_which_versions_are_supported() -> None:
    text = POLICY.read_text()
    version = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["version"]

    assert f"| {version.rpartition('.')[0]}.x | yes |" in text
    assert "Report a vulnerability" in text
    assert "docs/security.md" in text
    assert "@" not in text, "there is no address to write to"


def test_the_readme_leads_to_both_pages() -> None:
    links = re.findall(r"\]\(([^)#]+)", (ROOT / "README.md").read_text())

    assert {"SECURITY.md", "docs/security.md"} <= set(links)
