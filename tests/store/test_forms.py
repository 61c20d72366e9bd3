"""Presigned forms bind key, size and time of an upload, where the store has them; whether it has is found by trying once."""

import base64
import json
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
from botocore import auth, signers
from form_server import SECRET, FormServer, Kind, form_server
from s3_servers import Server

from fedpipe_operator.errors import FedPipeError, TransientError, UserError
from fedpipe_operator.store import Credentials, DirectoryStore, Guard, S3Store
from fedpipe_trainer.contract import PostForm
from fedpipe_trainer.errors import TaskFailed
from fedpipe_trainer.transfer import send


def store_of(server: FormServer, guard: Guard | None = None) -> S3Store:
    return S3Store("fedpipe", "runs/a", endpoint=server.endpoint, credentials=Credentials("operator", SECRET), guard=guard)


@pytest.fixture
def server() -> Iterator[FormServer]:
    with form_server() as running:
        yield running


def form_of(server: FormServer, key: str = "updates/a/result.json", *, seconds: int = 60, at_most: int = 10) -> PostForm:
    form = store_of(server).form_to_write(key, seconds, at_most)
    assert form is not None
    return form


def test_a_form_never_outlives_the_key_pair_that_signed_it(server: FormServer) -> None:
    now = datetime.now(UTC).timestamp()
    pair = Credentials("operator", SECRET, expires_at=now + 600)
    form = S3Store("fedpipe", "runs/a", endpoint=server.endpoint, credentials=pair, clock=lambda: now).form_to_write("a", 3600, 10)

    assert form is not None
    policy = json.loads(base64.b64decode(form.fields["policy"]))
    assert datetime.fromisoformat(policy["expiration"]).timestamp() < now + 660


def a_file(folder: Path, content: bytes) -> Path:
    path = folder / "result.json"
    path.write_bytes(content)
    return path


def refusal(path: Path, form: PostForm) -> str:
    with pytest.raises(TaskFailed) as failed:
        send(path, form)
    return failed.value.message


def test_a_form_writes_one_object_of_at_most_its_size(server: FormServer, tmp_path: Path) -> None:
    form = form_of(server)
    artifact = send(a_file(tmp_path, b"0123456789"), form)
    said = refusal(a_file(tmp_path, b"0123456789+"), form)

    assert artifact.size == 10
    assert server.objects == {"runs/a/updates/a/result.json": b"0123456789"}
    assert said.endswith("the store answered 400 Bad Request (EntityTooLarge): the file is larger than the task allows")


def test_a_form_moved_to_another_key_or_with_a_looser_policy_is_refused(server: FormServer, tmp_path: Path) -> None:
    form, larger = form_of(server), form_of(server, at_most=1000)
    moved = form.model_copy(update={"fields": form.fields | {"key": "runs/a/updates/b/result.json"}})
    mixed = form.model_copy(update={"fields": form.fields | {"policy": larger.fields["policy"]}})
    path = a_file(tmp_path, b"forged")

    assert all("403" in refusal(path, one) for one in (moved, mixed))
    assert server.objects == {}


def test_a_form_expires_with_its_task(server: FormServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    store = store_of(server)
    store.form_to_write("a", 60, 10)
    with monkeypatch.context() as an_hour_ago:
        for module in (auth, signers):
            an_hour_ago.setattr(module, "get_current_datetime", lambda: datetime.now(UTC).replace(tzinfo=None) - timedelta(hours=1))
        expired, valid = store.form_to_write("a", 60, 10), store.form_to_write("a", 7200, 10)
    path = a_file(tmp_path, b"late")

    assert expired is not None
    assert valid is not None
    assert "403" in refusal(path, expired)
    assert send(path, valid).size == 4


def test_forms_are_tried_once_and_leave_nothing_behind(server: FormServer) -> None:
    store = store_of(server)
    for key in ("a", "b", "c"):
        assert isinstance(store.form_to_write(key, 60, 10), PostForm)

    assert server.requests == ["POST runs/a/form-probe", "POST runs/a/form-probe", "DELETE runs/a/form-probe"]
    assert server.objects == {}


def test_a_key_pair_that_may_not_delete_uses_forms_and_leaves_a_byte(server: FormServer) -> None:
    server.deletes = False

    assert isinstance(store_of(server).form_to_write("a", 60, 10), PostForm)
    assert server.objects == {"runs/a/form-probe": b"\0"}


@pytest.mark.parametrize("kind", [Kind.IGNORES_SIZES, Kind.HAS_NO_FORMS, Kind.KNOWS_NO_POST])
def test_a_store_that_binds_no_size_has_no_forms(kind: Kind) -> None:
    with form_server(kind) as server:
        store = store_of(server)

        assert [store.form_to_write(key, 60, 10) for key in ("a", "b")] == [None, None]
        assert server.objects == {}
        assert server.requests.count("POST runs/a/form-probe") <= 2


@pytest.mark.parametrize("name", ["moto", "nanio"])
def test_the_servers_of_the_other_tests_have_none(name: str, request: pytest.FixtureRequest) -> None:
    found: Server = request.getfixturevalue(name)
    store = found.store(f"forms/{name}")

    assert store.form_to_write("a", 60, 10) is None
    assert store.list() == []


def test_a_folder_has_none(tmp_path: Path) -> None:
    assert DirectoryStore(tmp_path).form_to_write("a", 60, 10) is None  # type: ignore[func-returns-value]  # that is what is tested


def test_after_a_fault_of_the_store_forms_are_tried_again(server: FormServer) -> None:
    store = store_of(server)
    server.statuses = [503]

    with pytest.raises(TransientError) as fault:
        store.form_to_write("a", 60, 10)

    assert fault.value.reason == "StoreUnavailable"
    assert isinstance(store.form_to_write("a", 60, 10), PostForm)


def test_forms_are_tried_at_no_address_that_is_refused(server: FormServer) -> None:
    with pytest.raises(FedPipeError) as refused:
        store_of(server, Guard()).form_to_write("a", 60, 10)

    assert isinstance(refused.value, UserError)
    assert refused.value.reason == "AddressRefused"
    assert server.requests == []


def test_a_form_is_shown_without_its_signature(server: FormServer) -> None:
    form = form_of(server)

    assert form.fields["x-amz-signature"] not in repr(form)
