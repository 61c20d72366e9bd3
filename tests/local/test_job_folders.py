"""A job's folder: the task that goes in, the log, how it ended; and what an exit status means."""

import logging
import signal
from pathlib import Path

import pytest

from fedpipe_operator.backend import Job, JobState, JobStatus, TaskKind
from fedpipe_operator.errors import UserError
from fedpipe_operator.local import exit_status, job_folder
from fedpipe_operator.local.exit_status import End
from fedpipe_trainer.contract import ExitCode

JOB = Job(name="toy-train-r2-a-a1", kind=TaskKind.TRAIN, site="a", round=2, attempt=1)


def running(job: Job = JOB) -> JobStatus:
    return JobStatus(job=job, state=JobState.RUNNING, started_at=1000.0)


def ended(code: int, reason: str = "", message: str = "") -> JobStatus:
    state = JobState.FAILED if code else JobState.SUCCEEDED
    return JobStatus(job=JOB, state=state, started_at=1000.0, exit_code=code, reason=reason, message=message)


def a_folder(jobs: Path, name: str = JOB.name) -> Path:
    job_folder.lay_out(jobs / name, "{}")
    return jobs / name


def test_a_task_that_cannot_be_written_is_told_with_its_path(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"no-such-folder/job/task\.json: No such file or directory; free space or let us write") as told:
        job_folder.lay_out(tmp_path / "no-such-folder" / "job", "{}")

    assert told.value.reason == "TaskNotWritten"


def test_a_job_that_is_started_again_gets_its_new_task(tmp_path: Path) -> None:
    job_folder.lay_out(tmp_path / "job", '{"attempt": 0}')
    job_folder.lay_out(tmp_path / "job", '{"attempt": 1}')

    assert (tmp_path / "job" / "task.json").read_text() == '{"attempt": 1}'


@pytest.mark.parametrize("seen", [ended(0), ended(5, "OutOfMemory", "batch 1 does not fit")])
def test_how_a_job_ended_is_read_back_as_it_was(tmp_path: Path, seen: JobStatus) -> None:
    job_folder.record_end(a_folder(tmp_path), seen, 1060.0)

    assert job_folder.ended_jobs(tmp_path) == {JOB.name: seen}


def test_a_job_without_a_record_of_its_end_is_to_be_done_again(tmp_path: Path) -> None:
    job_folder.record_end(a_folder(tmp_path), ended(0), 1060.0)
    a_folder(tmp_path, "toy-train-r2-b-a0")
    (tmp_path / "toy-train-r2-b-a0" / ".exit.json").write_text('{"kind": "tr')

    assert list(job_folder.ended_jobs(tmp_path)) == [JOB.name]


@pytest.mark.parametrize("text", ['{"kind": "tr', '{"kind": "train", "invented": 1}'])
def test_a_record_that_cannot_be_read_is_told_with_its_path(tmp_path: Path, text: str) -> None:
    file = a_folder(tmp_path) / "exit.json"
    file.write_text(text)

    with pytest.raises(UserError, match=f"JobUnreadable: {file} is damaged or of another version"):
        job_folder.ended_jobs(tmp_path)


def test_an_end_that_cannot_be_recorded_is_a_warning_and_no_more(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    job_folder.record_end(tmp_path / "gone", ended(0), 1060.0)

    assert caplog.record_tuples == [
        (
            "fedpipe_operator.local.job_folder",
            logging.WARNING,
            f"cannot record the end of {JOB.name} (No such file or directory): after a restart it will be done again",
        )
    ]


def test_a_line_for_the_log_is_added_at_its_end(tmp_path: Path) -> None:
    log = tmp_path / "log"
    log.write_text("the trainer's\n")

    job_folder.add_to_log(log, "ours")
    job_folder.add_to_log(log, "another\n")

    assert log.read_text() == "the trainer's\nours\nanother\n"


def test_a_line_that_cannot_be_written_is_in_our_own_log(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    job_folder.add_to_log(tmp_path / "gone" / "log", "killed for its memory")

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
def test_the_last_line_of_a_log_is_the_last_that_says_something(tmp_path: Path, log: bytes, line: str) -> None:
    (tmp_path / "log").write_bytes(log)

    assert job_folder.last_line(tmp_path / "log") == line


def test_of_a_very_long_last_line_the_end_is_read(tmp_path: Path) -> None:
    (tmp_path / "log").write_text("first\n" + "x" * 100_000 + " the end")

    line = job_folder.last_line(tmp_path / "log")

    assert line.endswith(" the end")
    assert len(line) < 5000


def test_a_log_that_was_never_written_says_nothing(tmp_path: Path) -> None:
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
    assert exit_status.end_of_task(code) == End(code, reason)


@pytest.mark.parametrize(
    ("status", "for_memory", "serves", "end"),
    [
        (-signal.SIGKILL, False, True, End(137, "Killed")),
        (-signal.SIGKILL, True, True, End(137, "OutOfMemory")),
        (0, True, True, End(137, "OutOfMemory")),
        (-signal.SIGSEGV, False, True, End(139, "Died")),
        (-signal.SIGTERM, False, True, End(143, "Terminated")),
        (2, False, False, End(2, "BadTask")),
        (0, False, False, End(0, "")),
        (0, False, True, End(1, "Died")),
    ],
)
def test_the_death_of_a_process_means_something_for_its_task(status: int, for_memory: bool, serves: bool, end: End) -> None:
    assert exit_status.end_of_process(status, for_memory=for_memory, serves=serves) == end


def test_a_server_that_leaves_its_task_without_a_word_may_be_tried_again() -> None:
    end = exit_status.end_of_process(0, for_memory=False, serves=True)

    assert not ExitCode(end.exit_code).is_final


def test_what_a_job_failed_of_is_said_by_the_first_log_that_says_anything(tmp_path: Path) -> None:
    job_log, process_log = tmp_path / "job.log", tmp_path / "process.log"
    process_log.write_text("out of the process\n")
    silent = exit_status.ended(running(), End(4, "BadModel"), (job_log, process_log))
    job_log.write_text("out of the job\n")
    telling = exit_status.ended(running(), End(4, "BadModel"), (job_log, process_log))

    assert (silent.state, silent.exit_code, silent.reason) == (JobState.FAILED, 4, "BadModel")
    assert silent.message == f"exit code 4: out of the process ({process_log})"
    assert telling.message == f"exit code 4: out of the job ({job_log})"
    assert telling.job == JOB


def test_where_no_log_says_anything_that_is_said(tmp_path: Path) -> None:
    seen = exit_status.ended(running(), End(137, "Killed"), (tmp_path / "job.log", tmp_path / "process.log"))

    assert seen.message == f"exit code 137: nothing in {tmp_path / 'job.log'}"


def test_a_job_that_ended_well_has_no_message_whatever_its_log_says(tmp_path: Path) -> None:
    (tmp_path / "log").write_text("a warning\n")

    assert exit_status.ended(running(), End(0), (tmp_path / "log",)) == ended(0)
