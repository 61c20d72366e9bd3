"""The lines of the log: what each is about, in both formats, and no secret in any."""

import asyncio
import json
import logging
from collections.abc import Iterator

import pytest

from fedpipe_operator import logs
from fedpipe_operator.errors import TransientError
from fedpipe_operator.handlers.workqueue import WorkQueue

CANARY = "c4n4ry"
BODY = {"metadata": {"namespace": "wards", "name": "triage", "uid": "u-1", "generation": 3}, "status": {"round": 2}}


@pytest.fixture
def logger() -> Iterator[logging.Logger]:
    """A logger whose records go nowhere else."""
    found = logging.getLogger("fedpipe_operator.test")
    found.propagate, found.handlers[:] = False, []
    found.setLevel(logging.INFO)
    yield found
    found.handlers.clear()


class Lines(logging.Handler):
    """Keeps the lines that a formatter makes."""

    def __init__(self, formatter: logging.Formatter) -> None:
        super().__init__()
        self.setFormatter(formatter)
        self.lines: list[str] = []

    def emit(self, record: logging.LogRecord) -> None:
        self.lines.append(self.format(record))


def lines_of(logger: logging.Logger, formatter: logging.Formatter) -> list[str]:
    handler = Lines(formatter)
    logger.addHandler(handler)
    return handler.lines


def test_a_line_of_a_reconcile_is_about_its_run_and_what_it_says_itself(logger: logging.Logger) -> None:
    lines = lines_of(logger, logs.JsonFormatter())
    with logs.context(**logs.run_fields(BODY), reconcile="ab12"):
        logger.info("update received", extra={"site": "ward-3", "attempt": 0, "round": 3})
    logger.warning("not about a run")
    one, other = map(json.loads, lines)

    assert {name: one[name] for name in logs.FIELDS} == {
        "namespace": "wards",
        "run": "triage",
        "uid": "u-1",
        "generation": 3,
        "round": 3,
        "site": "ward-3",
        "attempt": 0,
        "reconcile": "ab12",
    }
    assert (one["severity"], one["logger"], one["message"]) == ("info", "fedpipe_operator.test", "update received")
    assert list(other) == ["timestamp", "severity", "logger", "message"]
    assert one["timestamp"].endswith("Z")


def test_the_plain_format_has_the_same_behind_the_message(logger: logging.Logger) -> None:
    lines = lines_of(logger, logs.PlainFormatter())
    with logs.context(namespace="wards", run="triage", round=None):
        logger.info("update received", extra={"site": "ward-3"})
    logger.info("started")

    assert lines[0].endswith("Z INFO    update received | namespace=wards run=triage site=ward-3")
    assert lines[1].endswith("Z INFO    started")


def test_a_message_does_not_look_like_further_lines(logger: logging.Logger) -> None:
    plain, as_json = lines_of(logger, logs.PlainFormatter()), lines_of(logger, logs.JsonFormatter())
    logger.info("%s", "a site says\r\n2026-01-01T00:00:00Z INFO    complete")

    assert "\n" not in plain[0] + as_json[0]


@pytest.mark.parametrize("formatter", [logs.JsonFormatter(), logs.PlainFormatter()], ids=["json", "plain"])
@pytest.mark.parametrize(
    "text",
    [
        f"GET https://minio:9000/fedpipe/runs/a?X-Amz-Signature={CANARY}&X-Amz-Date=1 failed",
        f"PUT 'http://10.0.0.1/b/k?sig={CANARY}': 403",
        f'{{"url": "https://s3.amazonaws.com/b/k?X-Amz-Credential={CANARY}/20260101/eu"}}',
        f"https://key:{CANARY}@minio:9000/bucket",
        f"https://{CANARY}@minio:9000/bucket?a={CANARY}",
        f"{{'key': 'runs/a', 'x-amz-signature': '{CANARY}', 'x-amz-credential': '{CANARY}/eu'}}",
        f"X-Amz-Security-Token={CANARY}&a=b",
        f"Authorization: Bearer {CANARY}",
        f"'authorization': 'AWS4-HMAC-SHA256 {CANARY}'",
        f"AWS_SECRET_ACCESS_KEY={CANARY}",
        f'AWS_SESSION_TOKEN: "{CANARY}"',
        f"https://minio:9000/a?b={CANARY}\nhttps://minio:9000/c?d={CANARY}",
    ],
)
def test_no_line_has_a_query_of_a_url_a_password_or_a_token(logger: logging.Logger, text: str, formatter: logging.Formatter) -> None:
    lines = lines_of(logger, formatter)
    logger.info("%s", text)
    logger.info(text.replace("%", "%%"), extra={"site": text})
    logger.error("a reconcile failed", exc_info=ValueError(text))

    assert len(lines) == 3
    assert [line for line in lines if CANARY in line] == []
    assert all(json.loads(line) for line in lines if isinstance(formatter, logs.JsonFormatter))


def test_what_is_no_secret_stays(logger: logging.Logger) -> None:
    lines = lines_of(logger, logs.JsonFormatter())
    text = (
        "bucket fedpipe at http://minio.minio:9000, rounds/0001/plan.json: the store answered 403? policy: minSites 3; see https://a.b/c#d"
    )
    logger.info("%s", text)

    assert json.loads(lines[0])["message"] == text


def test_the_line_of_a_failed_reconcile_has_the_fields_that_its_reconcile_bound(caplog: pytest.LogCaptureFixture) -> None:
    lines, formatter = [], logs.JsonFormatter()

    async def reconcile(key: str, failures: int) -> float | None:
        del failures
        logs.bind(run=key, reconcile=f"of-{key}")
        await asyncio.sleep(0)
        raise TransientError("StoreUnreachable", "it does not answer")

    async def serve() -> None:
        written = asyncio.Event()

        class Keep(logging.Handler):
            def emit(self, record: logging.LogRecord) -> None:
                lines.append(json.loads(formatter.format(record)))
                written.set() if len(lines) == 2 else None

        queue = WorkQueue(reconcile, lambda: 0.0, 2)
        queue.enqueue("a", after=0)
        queue.enqueue("b", after=0)
        logging.getLogger().addHandler(keep := Keep())
        running = asyncio.create_task(queue.run())
        await written.wait()
        running.cancel()
        logging.getLogger().removeHandler(keep)

    caplog.set_level(logging.INFO)
    asyncio.run(serve())

    assert {(line["run"], line["reconcile"]) for line in lines} == {("a", "of-a"), ("b", "of-b")}
    assert all("retry in" in line["message"] for line in lines)
