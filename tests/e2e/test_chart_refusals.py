"""Values that could not work: a sentence at install instead of an operator that ends. Needs Helm and no cluster."""

import re
import ssl
from pathlib import Path
from typing import Final

import pytest
from certificates import AUTHORITY
from charts import Plain, complaint, of_kind, rendered

pytestmark = [pytest.mark.e2e, pytest.mark.independent]

MONITORING: Final = ("--api-versions", "monitoring.coreos.com/v1")
ROLE: Final = "arn:aws:iam::123456789012:role/fedpipe"
SCRAPED: Final = {"enabled": True, "interval": "30s", "scrapeTimeout": "10s"}
VOLUME: Final = {"name": "more", "emptyDir": {}}


@pytest.mark.parametrize(
    ("given", "sentence"),
    [
        (
            {"healthPort": 9090},
            "healthPort and metricsPort are both 9090, and the operator listens on each: set one of them to another port",
        ),
        ({"reports": {"enabled": True, "port": 8080}}, "healthPort and reports.port are both 8080"),
        ({"reports": {"enabled": True, "port": 9090}}, "metricsPort and reports.port are both 9090"),
        (
            {"extraVolumes": [VOLUME, VOLUME]},
            "extraVolumes has two volumes named more: rename one of them",
        ),
        (
            {"extraVolumeMounts": [{"name": "nope", "mountPath": "/x"}]},
            "extraVolumeMounts mounts nope, and extraVolumes has no volume of this name: add it, or correct the name",
        ),
        (
            {"extraVolumes": [VOLUME], "extraVolumeMounts": [{"name": "more", "mountPath": "/tmp/"}]},  # noqa: S108 -- in a pod
            "extraVolumeMounts mounts more at /tmp, where another volume is mounted: choose another mountPath",
        ),
        (
            {"extraVolumes": [VOLUME], "extraVolumeMounts": [{"name": "more", "mountPath": "/x"}, {"name": "more", "mountPath": "/x"}]},
            "extraVolumeMounts mounts more at /x, where another volume is mounted",
        ),
        ({"extraEnv": [{"name": "A", "value": "1"}, {"name": "A"}]}, "extraEnv sets A twice: remove one of the two"),
        (
            {"metrics": {"serviceMonitor": SCRAPED, "podMonitor": SCRAPED}},
            "both true, and Prometheus would scrape each pod twice: set one of them to false",
        ),
        (
            {"metrics.podMonitor": SCRAPED | {"interval": "1m", "scrapeTimeout": "1m1s"}},
            "metrics.podMonitor.scrapeTimeout 1m1s is longer than its interval 1m, which Prometheus refuses",
        ),
        (
            {"metrics.serviceMonitor": SCRAPED | {"scrapeTimeout": "0s"}},
            "metrics.serviceMonitor: interval and scrapeTimeout must be above 0",
        ),
    ],
    ids=str,
)
def test_what_would_end_the_operator_or_be_refused_later_is_a_sentence_at_install(given: Plain, sentence: str) -> None:
    assert sentence in complaint(given | {"networkPolicy.metricsFrom": [{"podSelector": {}}]}, *MONITORING)


def test_ports_that_nothing_listens_on_and_scrapes_that_are_short_enough_are_no_matter() -> None:
    assert of_kind(rendered({"reports": {"enabled": False, "port": 9090}}), "Deployment") != []
    given = {"metrics.podMonitor": SCRAPED | {"interval": "1m30s", "scrapeTimeout": "90s"}, "networkPolicy.enabled": False}
    assert of_kind(rendered(given, *MONITORING), "PodMonitor") != []
    volume = {"extraVolumes": [VOLUME], "extraVolumeMounts": [{"name": "more", "mountPath": "/x"}, {"name": "tmp", "mountPath": "/y"}]}
    assert of_kind(rendered(volume), "Deployment") != []


@pytest.mark.parametrize(
    ("store", "models", "runs"),
    [
        ({"prefix": "runs"}, "fedpipe/runs", "fedpipe/runs"),
        ({"prefix": "runs"}, "fedpipe", "fedpipe/runs"),
        ({"prefix": "runs"}, "fedpipe/runs/models", "fedpipe/runs"),
        ({}, "fedpipe", "fedpipe/fedpipe"),
        ({"prefix": ""}, "fedpipe/models", "fedpipe"),
    ],
    ids=str,
)
def test_a_folder_of_models_that_runs_could_share_is_a_sentence_at_install(store: Plain, models: str, runs: str) -> None:
    said = complaint({"defaultStore": {"bucket": "fedpipe"} | store, "storeIdentity": {"roleArn": ROLE, "models": [models]}})

    assert f"storeIdentity.models: {models} has objects of runs ({runs}), which every run could read" in said


def test_a_folder_of_models_beside_those_of_runs_is_taken() -> None:
    given = {
        "defaultStore": {"bucket": "fedpipe", "prefix": "runs"},
        "storeIdentity": {"roleArn": ROLE, "models": ["fedpipe/runs-not", "a-b"]},
    }

    assert of_kind(rendered(given), "Deployment") != []


LINES: Final = AUTHORITY.splitlines()
OF_BYTES: Final = f"{LINES[0]}\n{'AAAA' * 64}\n{LINES[-1]}\n"


@pytest.mark.parametrize(
    ("pem", "sentence"),
    [
        (OF_BYTES, "the text of certificate 1 of 1 is none (X.509)"),
        (AUTHORITY + OF_BYTES, "the text of certificate 2 of 2 is none (X.509)"),
        ("\n".join([*LINES[:3], *LINES[4:]]), "the text of certificate 1 of 1 is none (X.509)"),
        (AUTHORITY.replace("M", "?", 1), "the text of certificate 1 of 1 is none (X.509)"),
        (AUTHORITY + "\n".join(LINES[:4]), "caBundle.pem is cut short: 2 certificates begin in it, and 1 end"),
    ],
    ids=["bytes", "bytes behind a certificate", "a line is missing", "no base64", "cut short"],
)
def test_what_cannot_be_a_certificate_is_a_sentence_that_quotes_nothing(pem: str, sentence: str) -> None:
    said = complaint({"caBundle.pem": pem})

    assert sentence in said
    assert LINES[2] not in said


def certificates_of_this_machine() -> str:
    """A bundle of many CAs, as systems have it."""
    file = ssl.get_default_verify_paths().cafile
    return Path(file).read_text() if file else ""


@pytest.mark.parametrize(
    "pem",
    [
        AUTHORITY.replace("\n", "\r\n"),
        f"# our CA - for all\n{AUTHORITY}\nand of the old one:\n{AUTHORITY}",
        AUTHORITY.replace(" CERT", " TRUSTED CERT"),
        certificates_of_this_machine() or AUTHORITY,
    ],
    ids=["of Windows", "with words", "trusted", "of this machine"],
)
def test_real_certificates_are_taken(pem: str, tmp_path: Path) -> None:
    (tmp_path / "ca.pem").write_bytes(pem.encode())
    objects = rendered({}, "--set-file", f"caBundle.pem={tmp_path / 'ca.pem'}")

    assert re.sub(r"\s", "", of_kind(objects, "ConfigMap")[0]["data"]["ca.crt"]) == re.sub(r"\s", "", pem)
