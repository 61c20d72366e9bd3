"""The driver of a run on this machine, and every way a command can end."""

import signal
import time
from io import StringIO
from pathlib import Path

import pytest
import typer
import yaml
from rich.console import Console
from stand_in_runs import StandInBackend, StandInPlacement, a_run, a_site

from fedpipe_operator import names
from fedpipe_operator.api import FineTuneStatus
from fedpipe_operator.cli.display import Display
from fedpipe_operator.cli.files import load, volumes_beside
from fedpipe_operator.cli.local_run import INTERRUPTED, LocalRun, Options, exit_on_errors, load_run, open_run, select_sites
from fedpipe_operator.errors import UserError
from fedpipe_operator.local.run_folder import RunFolder
from fedpipe_operator.local.session import Session
from fedpipe_operator.store.address import DirectoryAddress

RUN = a_run()


def a_console() -> Console:
    return Console(file=StringIO(), width=200)


def output(console: Console) -> str:
    assert isinstance(console.file, StringIO)
    return console.file.getvalue()


def options(folder: Path, **changes: bool) -> Options:
    return Options(folder / "runs", folder / "volumes", **changes)


class EagerBackend(StandInBackend):
    """Executes one job at each `wait`."""

    def wait(self, timeout: float) -> bool:
        del timeout
        for name in self.active_jobs()[:1]:
            self.work(name)
        return True


def local_run(backend: StandInBackend, folder: Path, console: Console) -> LocalRun:
    session = Session(RUN, backend, StandInPlacement(), DirectoryAddress(root=str(folder / "store")), resumed_at=0.0)
    return LocalRun(RunFolder(folder, RUN.resource), session, backend, Display(console))  # type: ignore[arg-type] # the stand-in has every method that is called


def test_a_run_is_reconciled_to_its_end_and_its_progress_displayed(tmp_path: Path) -> None:
    console = a_console()
    run = local_run(EagerBackend(tmp_path, clock=time.time), tmp_path, console)

    run.drive({"run": run.session})

    assert run.session.is_finished
    assert "site-b         train of round 2: succeeded" in output(console)


def test_a_run_is_reconciled_until_the_given_condition(tmp_path: Path) -> None:
    backend = EagerBackend(tmp_path, clock=time.time)
    run = local_run(backend, tmp_path, a_console())

    run.drive({"run": run.session}, until=lambda session: session.store.read(names.round_plan(1)) is not None)

    assert not run.session.is_finished
    assert not [name for name in backend.started if "train" in name]


def test_a_resumed_run_keeps_its_uid_and_status(tmp_path: Path) -> None:
    with open_run(RUN.resource, list(RUN.sites), options(tmp_path), a_console()) as first:
        first.session.write_status(first.session.run, FineTuneStatus(round=1))
    with open_run(RUN.resource, list(RUN.sites), options(tmp_path), a_console()) as second:
        pass

    assert second.session.run.resource.metadata.uid == first.session.run.resource.metadata.uid
    assert second.session.run.resource.status.round == 1
    assert [site.name for site in second.session.run.sites] == ["site-a", "site-b", "site-c"]


def test_fresh_starts_over(tmp_path: Path) -> None:
    with open_run(RUN.resource, list(RUN.sites), options(tmp_path), a_console()) as first:
        first.session.write_status(first.session.run, FineTuneStatus(round=1))
    with open_run(RUN.resource, list(RUN.sites), options(tmp_path, fresh=True), a_console()) as second:
        pass

    assert second.session.run.resource.metadata.uid != first.session.run.resource.metadata.uid
    assert second.session.run.resource.status.round == 0


def test_an_open_run_is_locked_until_it_is_closed(tmp_path: Path) -> None:
    with open_run(RUN.resource, list(RUN.sites), options(tmp_path), a_console()):
        second = open_run(RUN.resource, list(RUN.sites), options(tmp_path), a_console())
        with pytest.raises(UserError, match="RunInProgress"):
            second.__enter__()

    with open_run(RUN.resource, list(RUN.sites), options(tmp_path), a_console()):
        pass


def test_the_objects_of_a_run_are_in_its_folder(tmp_path: Path) -> None:
    with open_run(RUN.resource, list(RUN.sites), options(tmp_path), a_console()) as run:
        run.session.store.write("rounds/0001/plan.json", b"{}")

    assert (tmp_path / "runs/default/toy/store/rounds/0001/plan.json").read_bytes() == b"{}"


@pytest.mark.parametrize("signal_", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_stops_a_command_with_a_message_and_its_own_exit_status(signal_: signal.Signals) -> None:
    console = a_console()
    before = signal.getsignal(signal.SIGTERM)

    with pytest.raises(typer.Exit) as ended, exit_on_errors(console):
        signal.raise_signal(signal_)

    assert ended.value.exit_code == INTERRUPTED
    assert output(console) == "stopped; run the same command again to resume\n"
    assert signal.getsignal(signal.SIGTERM) is before


def test_a_user_error_is_one_line_on_stderr_and_exit_status_1(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(typer.Exit) as ended, exit_on_errors(a_console()):
        raise UserError("StoreFull", "the disk is full; free space")

    assert ended.value.exit_code == 1
    assert capsys.readouterr().err == "StoreFull: the disk is full; free space\n"


def test_an_unexpected_error_is_not_hidden() -> None:
    with pytest.raises(ZeroDivisionError), exit_on_errors(a_console()):
        raise ZeroDivisionError


def test_the_sites_of_a_run_are_those_that_its_selector_matches_sorted_by_name() -> None:
    resource = a_run(sites={"selector": {"matchLabels": {"study": "triage"}}}).resource
    sites = [a_site(name) for name in ("c", "a", "b")]
    labelled = [
        site.model_copy(update={"metadata": site.metadata.model_copy(update={"labels": {"study": study}})})
        for site, study in zip(sites, ("triage", "triage", "other"), strict=True)
    ]

    assert [site.name for site in select_sites(resource, labelled)] == ["a", "c"]


def test_the_default_folder_of_volumes_is_beside_the_yaml(tmp_path: Path) -> None:
    assert volumes_beside(tmp_path) == tmp_path / "volumes"
    assert volumes_beside(tmp_path / "run.yaml") == tmp_path / "volumes"


def a_file(folder: Path, name: str, *values: object) -> Path:
    file = folder / name
    file.write_text(yaml.safe_dump_all(values))
    return file


def a_document(kind: str, name: str) -> dict[str, object]:
    value = RUN.resource if kind == "FederatedFineTune" else RUN.sites[0]
    spec = value.spec.model_dump(mode="json", by_alias=True, exclude_none=True)
    return {"apiVersion": "fedpipe.io/v1alpha1", "kind": kind, "metadata": {"name": name}, "spec": spec}


@pytest.mark.parametrize("runs", [[], ["one", "two"]])
def test_files_with_no_run_or_several_are_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str], runs: list[str]) -> None:
    site = a_document("EdgeSite", "ward")
    file = a_file(tmp_path, "all.yaml", site, *(a_document("FederatedFineTune", name) for name in runs))

    with pytest.raises(typer.Exit) as ended:
        load_run([file])

    assert ended.value.exit_code == 2
    assert f"these files contain {len(runs)} FederatedFineTunes" in capsys.readouterr().err


def test_a_run_whose_sites_are_not_among_the_files_is_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    a_file(tmp_path, "run.yaml", a_document("FederatedFineTune", "run"))

    with pytest.raises(typer.Exit) as ended:
        load_run([tmp_path])

    assert ended.value.exit_code == 2
    assert "these files contain no EdgeSite that run selects" in capsys.readouterr().err


def test_the_objects_of_a_folder_are_read_from_all_its_yaml_files_in_order(tmp_path: Path) -> None:
    a_file(tmp_path, "b.yaml", a_document("EdgeSite", "second"), a_document("EdgeSite", "third"))
    a_file(tmp_path, "a.yaml", a_document("FederatedFineTune", "run"), a_document("EdgeSite", "first"))
    a_file(tmp_path, "notes.txt", {"ignored": True})

    run, sites = load_run([tmp_path])

    assert run.metadata.name == "run"
    assert [site.name for site in sites] == ["first", "second", "third"]


def test_a_file_that_cannot_be_read_is_an_error_with_its_cause(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    a_file(tmp_path, "run.yaml", a_document("FederatedFineTune", "run"))

    with pytest.raises(typer.Exit) as ended:
        load([tmp_path / "run.yaml" / "deeper.yaml"])

    assert ended.value.exit_code == 2
    assert "cannot be read (Not a directory): check its path and permissions" in capsys.readouterr().err
