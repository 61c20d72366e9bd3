"""A job's folder: task, log and how the job ended; and the meaning of an exit status."""

import logging
import signal
from pathlib import Path

import pytest

from fedpipe_operator.backend import Job, JobState, JobStatus, TaskKind
from fedpipe_operator.errors import UserError
from fedpipe_operator.local import job_folder
from fedpipe_operator.local.job_folder import ExitStatus
from fedpipe_trainer.contract import ExitCode

JOB = Job(name="toy-train-r2-a-a1", kind=TaskKind.TRAIN, site="a", round=2, attempt=1)


def running(job: Job = JOB) -> JobStatus:
    return JobStatus(job=job, state=JobState.RUNNING, started_at=1000.0)


def ended(code: int, reason: str = "", message: str = "") -> JobStatus:
    state = JobState.FAILED if code else JobState.SUCCEEDED
    return JobStatus(job=JOB, state=state, started_at=1000.0, exit_code=code, reason=reason, message=message)


def a_folder(jobs: Path, name: str = JOB.name) -> Path:
    job_folder.write_task(jobs / name, "{}")
    return jobs / name


def test_a_task_that_cannot_be_written_is_an_error_with_its_path(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"no-such-folder/job/task\.json: No such file or directory; free space or make") as failure:
        job_folder.write_task(tmp_path / "no-such-folder" / "job", "{}")

    assert failure.value.reason == "TaskNotWritten"


def test_a_job_that_is_started_again_gets_its_new_task(tmp_path: Path) -> None:
    job_folder.write_task(tmp_path / "job", '{"attempt": 0}')
    job_folder.write_task(tmp_path / "job", '{"attempt": 1}')

    assert (tmp_path / "job" / "task.json").read_text() == '{"attempt": 1}'


@pytest.mark.parametrize("status", [ended(0), ended(5, "OutOfMemory", "batch 1 does not fit")])
def test_how_a_job_ended_is_read_back_unchanged(tmp_path: Path, status: JobStatus) -> None:
    job_folder.record_end(a_folder(tmp_path), status, 1060.0)

    assert job_folder.read_ended_jobs(tmp_path) == {JOB.name: status}


def test_a_job_without_a_record_of_its_end_must_run_again(tmp_path: Path) -> None:
    job_folder.record_end(a_folder(tmp_path), ended(0), 1060.0)
    a_folder(tmp_path, "toy-train-r2-b-a0")
    (tmp_path / "toy-train-r2-b-a0" / ".exit.json").write_text('{"kind": "tr')

    assert list(job_folder.read_ended_jobs(tmp_path)) == [JOB.name]


@pytest.mark.parametrize("text", ['{"kind": "tr', '{"kind": "train", "invented": 1}'])
def test_a_record_that_cannot_be_read_is_an_error_with_its_path(tmp_path: Path, text: str) -> None:
    file = a_folder(tmp_path) / "exit.json"
    file.write_text(text)

    with pytest.raises(UserError, match=f"JobUnreadable: {file} is damaged or of another version"):
        job_folder.read_ended_jobs(tmp_path)


def test_an_end_that_cannot_be_recorded_is_only_a_warning(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    job_folder.record_end(tmp_path / "gone", ended(0), 1060.0)

    assert caplog.record_tuples == [
        (
            "fedpipe_operator.local.job_folder",
            logging.WARNING,
            f"cannot record the end of {JOB.name} (No such file or directory): after a restart it will run again",
        )
    ]


def test_a_line_is_appended_to_the_log(tmp_path: Path) -> None:
    log = tmp_path / "log"
    log.write_text("of the trainer\n")

    job_folder.append_to_log(log, "of the operator")
    job_folder.append_to_log(log, "another\n")

    assert log.read_text() == "of the trainer\nof the operator\nanother\n"


def test_a_line_that_cannot_be_written_goes_to_the_operators_log(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    job_folder.append_to_log(tmp_path / "gone" / "log", "killed for its memory")

    assert "killed for its memory" in caplog.text


@pytest.mark.parametrize(
    ("log", "line"),
    [
        (b"first\nno tokenizer in the model's folder\n\n   \n", "no tokenizer in the model's folder"),
        (b"x\n" * 10_000 + b"the end", "the end"),
        (b"\xff\xfe broken\n", "\ufffd\ufffd broken"),
        (b"", ""),
        (b"\n \n", ""),
    ],
)
def test_the_last_line_of_a_log_is_the_last_that_is_not_blank(tmp_path: Path, log: bytes, line: str) -> None:
    (tmp_path / "log").write_bytes(log)

    assert job_folder.last_line(tmp_path / "log") == line


def test_only_the_end_of_a_very_long_last_line_is_read(tmp_path: Path) -> None:
    (tmp_path / "log").write_text("first\n" + "x" * 100_000 + " the end")

    line = job_folder.last_line(tmp_path / "log")

    assert line.endswith(" the end")
    assert len(line) < 5000


def test_a_log_that_was_never_written_has_no_last_line(tmp_path: Path) -> None:
    assert job_folder.last_line(tmp_path / "log") == ""


@pytest.mark.parametrize(
    ("code", "reason"),
    [
        (0, ""),
        (1, "Unexpected"),
        (3, "BadData"),
        (5, "OutOfMemory"),
        (10, "TransferFailed"),
        (126, "CannotRun"),
        (143, "Terminated"),
        (77, "Died"),
    ],
)
def test_a_trainers_exit_status_has_a_reason(code: int, reason: str) -> None:
    assert job_folder.task_exit_status(code) == ExitStatus(code, reason)


@pytest.mark.parametrize(
    ("returncode", "out_of_memory", "serves", "expected"),
    [
        (-signal.SIGKILL, False, True, ExitStatus(137, "Killed")),
        (-signal.SIGKILL, True, True, ExitStatus(137, "OutOfMemory")),
        (0, True, True, ExitStatus(137, "OutOfMemory")),
        (-signal.SIGSEGV, False, True, ExitStatus(139, "Died")),
        (-signal.SIGTERM, False, True, ExitStatus(143, "Terminated")),
        (2, False, False, ExitStatus(2, "BadTask")),
        (0, False, False, ExitStatus(0, "")),
        (0, False, True, ExitStatus(1, "Died")),
    ],
)
def test_an_ended_process_gives_its_task_an_exit_status(returncode: int, out_of_memory: bool, serves: bool, expected: ExitStatus) -> None:
    assert job_folder.process_exit_status(returncode, out_of_memory=out_of_memory, serves=serves) == expected


def test_a_trainer_that_ends_without_reporting_its_task_is_a_failure_that_may_be_retried() -> None:
    ended = job_folder.process_exit_status(0, out_of_memory=False, serves=True)

    assert not ExitCode(ended.code).is_final


def test_the_cause_of_a_failure_is_the_last_line_of_the_first_log_that_is_not_blank(tmp_path: Path) -> None:
    job_log, process_log = tmp_path / "job.log", tmp_path / "process.log"
    process_log.write_text("out of the process\n")
    from_process = job_folder.with_exit_status(running(), ExitStatus(4, "BadModel"), (job_log, process_log))
    job_log.write_text("out of the job\n")
    from_job = job_folder.with_exit_status(running(), ExitStatus(4, "BadModel"), (job_log, process_log))

    assert (from_process.state, from_process.exit_code, from_process.reason) == (JobState.FAILED, 4, "BadModel")
    assert from_process.message == f"exit code 4: out of the process ({process_log})"
    assert from_job.message == f"exit code 4: out of the job ({job_log})"
    assert from_job.job == JOB


def test_a_failure_without_any_log_has_a_message_that_says_so(tmp_path: Path) -> None:
    status = job_folder.with_exit_status(running(), ExitStatus(137, "Killed"), (tmp_path / "job.log", tmp_path / "process.log"))

    assert status.message == f"exit code 137: nothing in {tmp_path / 'job.log'}"


def test_a_job_that_succeeded_has_no_message_whatever_its_log_says(tmp_path: Path) -> None:
    (tmp_path / "log").write_text("a warning\n")

    assert job_folder.with_exit_status(running(), ExitStatus(0), (tmp_path / "log",)) == ended(0)
