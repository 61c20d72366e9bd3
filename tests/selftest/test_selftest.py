"""What `helm test` says: a line for each check, with what is wrong and what to do."""

import json
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any
from urllib.error import HTTPError, URLError
from urllib.request import Request

import pytest
from s3_servers import BUCKET, CREDENTIALS, ENVIRONMENT, Server
from token_service import TokenService, running_token_service

from fedpipe_operator.cluster.api import Kind
from fedpipe_operator.errors import TransientError, UserError
from fedpipe_operator.selftest import __main__ as selftest
from fedpipe_operator.selftest.checks import crds_are_served, operator_is_ready, store_works, toy_site_is_planned
from fedpipe_operator.store import DirectoryStore, S3Store
from fedpipe_operator.store.address import BucketAddress

Plain = dict[str, Any]

NAMES = [{"name": "edgesites"}, {"name": "edgesites/status"}, {"name": "federatedfinetunes"}]


class Objects:
    """Answers with one object after another, and with the last one from then on."""

    def __init__(self, *answers: Plain | None) -> None:
        self.answers = list(answers)
        self.asked: list[str] = []

    def get(self, kind: Kind, namespace: str, name: str) -> Plain | None:
        self.asked.append(kind.path(namespace, name))
        return self.answers.pop(0) if len(self.answers) > 1 else self.answers[0]


def deployment(ready: int, *, updated: int | None = None, observed: int = 3) -> Plain:
    status = {"observedGeneration": observed, "readyReplicas": ready, "updatedReplicas": ready if updated is None else updated}
    return {"metadata": {"generation": 3}, "status": status}


def readiness(api: Objects) -> str:
    """The check, with a clock that each pause moves on."""
    seconds = [0.0]

    def sleep(by: float) -> None:
        seconds[0] += by

    return operator_is_ready(api, "ops", "fedpipe", clock=lambda: seconds[0], sleep=sleep)


def failure_of(check: Callable[[], object]) -> str:
    with pytest.raises((UserError, TransientError)) as error:
        check()
    return str(error.value)


def test_both_kinds_are_asked_for_in_the_groups_description() -> None:
    api = Objects({"resources": NAMES})

    assert crds_are_served(api) == "federatedfinetunes and edgesites of fedpipe.io/v1alpha1 are served"
    assert api.asked == ["/apis/fedpipe.io/v1alpha1"]


@pytest.mark.parametrize(
    ("answer", "missing"), [(None, "federatedfinetunes and edgesites"), ({"resources": NAMES[:2]}, "federatedfinetunes")]
)
def test_a_kind_that_is_not_served_is_named(answer: Plain | None, missing: str) -> None:
    assert failure_of(lambda: crds_are_served(Objects(answer))) == (
        f"KindsMissing: the API server does not serve {missing} of fedpipe.io/v1alpha1:"
        " set crds.enabled to true, or apply the files of crds/"
    )


def test_an_operator_that_becomes_ready_in_time_is_ready() -> None:
    api = Objects(deployment(0), deployment(1, observed=2), deployment(1, updated=0), deployment(1))

    assert readiness(api) == "a pod of the Deployment ops/fedpipe is ready"
    assert api.asked == ["/apis/apps/v1/namespaces/ops/deployments/fedpipe"] * 4


@pytest.mark.parametrize("state", [deployment(0), deployment(1, observed=2), deployment(1, updated=0), {"metadata": {"generation": 1}}])
def test_an_operator_that_does_not_become_ready_is_told_with_where_to_look(state: Plain) -> None:
    said = failure_of(lambda: readiness(Objects(state)))

    assert said.startswith(
        "OperatorNotReady: no pod of the Deployment ops/fedpipe is ready after 60 s: see `kubectl logs deployment/fedpipe"
    )


def test_an_operator_that_is_not_there_is_told() -> None:
    assert failure_of(lambda: readiness(Objects(None))) == ("OperatorMissing: there is no Deployment ops/fedpipe: install the chart again")


def test_a_store_is_written_and_read_also_by_presigned_urls(moto: Server) -> None:
    store = moto.store("helm")

    assert store_works(store).startswith("objects are written and read, also by presigned URLs; ")
    assert store_works(store).endswith("; they are deleted")
    assert store.list() == []


class WithoutDeletion(DirectoryStore):
    def delete(self, prefix: str) -> None:
        raise UserError("StoreDenied", f"{prefix}: Access Denied")


def by_path(request: Request) -> bytes:
    """A stand-in for a store that serves the URLs of a folder."""
    path = Path(request.full_url.removeprefix("file://"))
    if request.get_method() == "PUT":
        path.write_bytes(request.data)  # type: ignore[arg-type]
        return b""
    return path.read_bytes()


def test_a_key_pair_that_may_not_delete_is_told_and_is_no_failure(tmp_path: Path) -> None:
    said = store_works(WithoutDeletion(tmp_path), by_path)

    assert said.endswith("the key pair may not delete, so spec.deletionPolicy: Delete would fail, and self-test/object stays")


@pytest.mark.parametrize(
    ("error", "sentence"),
    [
        (
            HTTPError("https://x/?X-Amz-Signature=abc", 403, "Forbidden", {}, None),
            "UrlRefused: a presigned URL to write was answered with 403",
        ),  # type: ignore[arg-type]
        (URLError("refused"), "UrlUnreachable: a presigned URL to write got no answer (refused)"),
        (TimeoutError("timed out"), "UrlUnreachable: a presigned URL to write got no answer (timed out)"),
    ],
)
def test_a_presigned_url_that_does_not_work_is_told_without_the_url(tmp_path: Path, error: OSError, sentence: str) -> None:
    def send(_: Request) -> bytes:
        raise error

    said = failure_of(lambda: store_works(DirectoryStore(tmp_path), send))

    assert said.startswith(sentence)
    assert "X-Amz" not in said


def test_a_store_that_gives_back_something_else_is_told(tmp_path: Path) -> None:
    said = failure_of(lambda: store_works(DirectoryStore(tmp_path), lambda _: b"<html>proxy</html>"))

    assert said.startswith("StoreChanged: an object that was written and read by presigned URLs is not the same")


def test_a_store_whose_bucket_does_not_exist_is_told(moto: Server) -> None:
    store = S3Store("missing", "helm", endpoint=moto.endpoint, credentials=CREDENTIALS)

    assert failure_of(lambda: store_works(store)).startswith("BucketMissing: bucket missing at ")


def test_a_toy_site_is_planned_from_invented_figures() -> None:
    assert toy_site_is_planned().startswith("a toy site trains 4/4 layers at rank ")


def test_every_check_is_run_and_has_one_line() -> None:
    lines: list[str] = []

    def fail() -> str:
        raise UserError("Broken", "it is broken:\n mend it")

    failed = list(selftest.failures({"first": fail, "second": lambda: "it works"}, lines.append))

    assert failed == ["first"]
    assert lines == ["FAILED    first: Broken: it is broken: mend it\n", "ok        second: it works\n"]


@pytest.mark.parametrize("given", [{}, {"FEDPIPE_TEST_STORE": "{}"}, {"FEDPIPE_TEST_STORE": '{"bucket": "", "region": "us-east-1"}'}])
def test_without_a_bucket_there_is_no_store(given: Mapping[str, str]) -> None:
    assert selftest.store_address(given) is None


def test_a_store_that_is_not_given_by_its_endpoint_is_aws() -> None:
    given = {"FEDPIPE_TEST_STORE": json.dumps({"bucket": "fedpipe", "endpoint": "", "prefix": "helm", "region": "eu-west-1"})}
    address = selftest.store_address(given)

    assert address is not None
    assert (address.endpoint, address.region, address.url) == (None, "eu-west-1", "s3://fedpipe/helm")
    assert address.api_servers is not None, "the guard of the operator holds for the test, too"


def test_a_store_where_the_chart_says_that_the_api_server_is_fails_as_it_would_for_the_operator() -> None:
    address = selftest.store_address({"FEDPIPE_TEST_STORE": '{"bucket": "fedpipe"}', "FEDPIPE_API_SERVERS": "192.0.2.10:6443"})

    assert address is not None
    assert "192.0.2.10:6443" in (address.api_servers or ())


@pytest.mark.parametrize(
    ("secret", "what"),
    [({"FEDPIPE_TEST_SECRET": "store"}, "the Secret store of this namespace has not both"), ({}, "no Secret is named that has both")],
)
def test_a_missing_key_pair_is_told_by_its_secret(secret: Mapping[str, str], what: str) -> None:
    address = selftest.store_address({"FEDPIPE_TEST_STORE": '{"bucket": "fedpipe"}'})
    assert address is not None

    assert failure_of(lambda: selftest.key_pair_of(address, secret)).startswith(f"CredentialsMissing: {what} AWS_ACCESS_KEY_ID")


ROLE = "arn:aws:iam::123456789012:role/fedpipe"


@pytest.fixture
def service() -> Iterator[TokenService]:
    with running_token_service() as service:
        service.expiration = "2099-01-01T00:00:00Z"
        yield service


@pytest.fixture
def by_identity(moto: Server, service: TokenService, tmp_path: Path) -> Callable[[], str]:
    """The check of a store that the operator's role opens, with the token in `tmp_path`."""
    (tmp_path / "token").write_text("a-jwt")
    address = BucketAddress(bucket=BUCKET, prefix="fedpipe/_helm-test", endpoint=moto.endpoint)
    identity = {"roleArn": ROLE, "stsEndpoint": service.endpoint, "sessionSeconds": 7200, "models": ["hub/models"]}
    given = {"FEDPIPE_TEST_IDENTITY": json.dumps(identity)}
    return lambda: selftest.store_is_opened_and_works(address, given, tmp_path / "token")


def test_a_store_that_the_operators_role_opens_is_written_and_read_by_a_session_of_it(by_identity: Callable[[], str]) -> None:
    session = f"{ROLE} gives a session to the operator's service account"

    assert by_identity().startswith(f"{session}; objects are written and read, also by presigned URLs; ")


def test_the_session_lasts_as_long_as_that_of_a_run_and_opens_the_folder_of_the_test_alone(
    by_identity: Callable[[], str], service: TokenService
) -> None:
    by_identity()
    (asked,) = service.asked
    resources = [one["Resource"] for one in json.loads(asked["Policy"])["Statement"]]

    assert (asked["RoleArn"], asked["RoleSessionName"], asked["DurationSeconds"]) == (ROLE, "fedpipe-helm-test", "7200")
    assert resources == [f"arn:aws:s3:::{BUCKET}", f"arn:aws:s3:::{BUCKET}/fedpipe/_helm-test/*", "*"], "the last one is of KMS"


def test_a_role_that_is_refused_and_a_token_that_is_missing_are_told(
    by_identity: Callable[[], str], service: TokenService, tmp_path: Path
) -> None:
    service.refusal = (403, "AccessDenied", "Not authorized to perform sts:AssumeRoleWithWebIdentity")
    assert failure_of(by_identity).startswith(f"IdentityRefused: the role {ROLE} at ")

    (tmp_path / "token").unlink()
    assert failure_of(by_identity).startswith(f"IdentityTokenMissing: the operator's token for the role {ROLE} cannot be read from ")


@pytest.fixture
def in_a_pod(monkeypatch: pytest.MonkeyPatch) -> Iterator[pytest.MonkeyPatch]:
    """A pod whose API server answers, and whose store is the one that a test gives."""

    class Both(Objects):
        def get(self, kind: Kind, namespace: str, name: str) -> Plain | None:
            del namespace, name
            return deployment(1) if kind.plural == "deployments" else {"resources": NAMES}

    monkeypatch.setattr(selftest, "in_cluster", lambda: Both(None))
    for name in ("FEDPIPE_TEST_STORE", "FEDPIPE_TEST_SECRET", "FEDPIPE_TEST_IDENTITY", "SSL_CERT_FILE"):
        monkeypatch.delenv(name, raising=False)
    return monkeypatch


def test_a_release_that_works_passes(in_a_pod: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    del in_a_pod

    assert selftest.main(["ops/fedpipe"]) == 0
    assert [line.partition(":")[0] for line in capsys.readouterr().out.splitlines()] == [
        *(f"ok        {name}" for name in ("crds", "operator", "certificates", "plan")),
        "left out  store",
    ]


def test_a_store_at_an_address_that_the_operator_refuses_fails(
    in_a_pod: pytest.MonkeyPatch, moto: Server, capsys: pytest.CaptureFixture[str]
) -> None:
    """The stand-in is on this machine, to which no run may connect."""
    in_a_pod.setenv("FEDPIPE_TEST_STORE", json.dumps({"bucket": BUCKET, "endpoint": moto.endpoint}))
    for name, value in ENVIRONMENT.items():
        in_a_pod.setenv(name, value)

    assert selftest.main(["ops/fedpipe"]) == 1
    assert "FAILED    store: AddressRefused: " in capsys.readouterr().out


def test_the_store_of_an_identity_is_opened_by_its_token_and_by_no_key_pair_that_the_pod_has(
    in_a_pod: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    in_a_pod.setenv("FEDPIPE_TEST_STORE", json.dumps({"bucket": BUCKET, "endpoint": "http://192.0.2.1:9000"}))
    in_a_pod.setenv("FEDPIPE_TEST_IDENTITY", json.dumps({"roleArn": ROLE}))
    for name, value in ENVIRONMENT.items():
        in_a_pod.setenv(name, value)

    assert selftest.main(["ops/fedpipe"]) == 1
    assert "FAILED    store: IdentityTokenMissing: " in capsys.readouterr().out


def test_certificates_that_cannot_be_read_fail(in_a_pod: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    in_a_pod.setenv("SSL_CERT_FILE", str(tmp_path / "missing.crt"))

    assert selftest.main(["ops/fedpipe"]) == 1
    assert "FAILED    certificates: CertificatesUnreadable: the certificates in " in capsys.readouterr().out


def test_a_wrong_argument_is_told(capsys: pytest.CaptureFixture[str]) -> None:
    assert selftest.main(["fedpipe"]) == 2
    assert "usage: python -m fedpipe_operator.selftest NAMESPACE/DEPLOYMENT" in capsys.readouterr().err
