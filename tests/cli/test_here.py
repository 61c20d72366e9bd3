"""A run taken up on this machine, and every way a command can be stopped."""

import signal
import time
from io import StringIO
from pathlib import Path

import pytest
import typer
import yaml
from rich.console import Console
from stand_in_runs import StandInDoor, StandInMap, a_run, a_site

from fedpipe_operator.api import FineTuneStatus
from fedpipe_operator.cli.display import Display
from fedpipe_operator.cli.files import load
from fedpipe_operator.cli.here import INTERRUPTED, Here, Options, endings, load_one, matching, taken_up, volumes_beside
from fedpipe_operator.errors import UserError
from fedpipe_operator.local.run_folder import RunFolder
from fedpipe_operator.local.session import Session
from fedpipe_operator.store.address import DirectoryAddress

RUN = a_run()


def a_console() -> Console:
    return Console(file=StringIO(), width=200)


def printed(console: Console) -> str:
    assert isinstance(console.file, StringIO)
    return console.file.getvalue()


def options(folder: Path, **changes: bool) -> Options:
    return Options(folder / "runs", folder / "volumes", **changes)


class WillingDoor(StandInDoor):
    """Does one job whenever it is waited for."""

    def wait(self, timeout: float) -> bool:
        del timeout
        for name in self.active_jobs()[:1]:
            self.work(name)
        return True


def here_with(backend: StandInDoor, folder: Path, console: Console) -> Here:
    session = Session(RUN, backend, StandInMap(), DirectoryAddress(root=str(folder / "store")), resumed_at=0.0)
    return Here(RunFolder(folder, RUN.resource), session, backend, Display(console))  # type: ignore[arg-type] # a stand-in has all that is called


def test_a_run_is_driven_to_its_end_and_shown_on_the_way(tmp_path: Path) -> None:
    console = a_console()
    here = here_with(WillingDoor(tmp_path, clock=time.time), tmp_path, console)

    here.drive({"run": here.session})

    assert here.session.over
    assert "site-b         train of round 2: succeeded" in printed(console)


def test_a_run_is_driven_as_far_as_is_asked_for_and_no_further(tmp_path: Path) -> None:
    backend = WillingDoor(tmp_path, clock=time.time)
    here = here_with(backend, tmp_path, a_console())

    here.drive({"run": here.session}, until=lambda session: session.run.resource.status.plans != ())

    assert not here.session.over
    assert not [name for name in backend.started if "train" in name]


def test_a_run_that_is_taken_up_again_has_its_uid_and_its_status(tmp_path: Path) -> None:
    with taken_up(RUN.resource, list(RUN.sites), options(tmp_path), a_console()) as first:
        first.session.write_status(first.session.run, FineTuneStatus(round=1))
    with taken_up(RUN.resource, list(RUN.sites), options(tmp_path), a_console()) as second:
        pass

    assert second.session.run.resource.metadata.uid == first.session.run.resource.metadata.uid
    assert second.session.run.resource.status.round == 1
    assert [site.name for site in second.session.run.sites] == ["site-a", "site-b", "site-c"]


def test_fresh_starts_over(tmp_path: Path) -> None:
    with taken_up(RUN.resource, list(RUN.sites), options(tmp_path), a_console()) as first:
        first.session.write_status(first.session.run, FineTuneStatus(round=1))
    with taken_up(RUN.resource, list(RUN.sites), options(tmp_path, fresh=True), a_console()) as second:
        pass

    assert second.session.run.resource.metadata.uid != first.session.run.resource.metadata.uid
    assert second.session.run.resource.status.round == 0


def test_a_run_that_is_taken_up_keeps_others_out_until_it_is_let_go(tmp_path: Path) -> None:
    with taken_up(RUN.resource, list(RUN.sites), options(tmp_path), a_console()):
        again = taken_up(RUN.resource, list(RUN.sites), options(tmp_path), a_console())
        with pytest.raises(UserError, match="RunInProgress"):
            again.__enter__()

    with taken_up(RUN.resource, list(RUN.sites), options(tmp_path), a_console()):
        pass


def test_the_runs_objects_are_in_its_own_folder(tmp_path: Path) -> None:
    with taken_up(RUN.resource, list(RUN.sites), options(tmp_path), a_console()) as here:
        here.session.store.write("rounds/0001/plan.json", b"{}")

    assert (tmp_path / "runs/default/toy/store/rounds/0001/plan.json").read_bytes() == b"{}"


@pytest.mark.parametrize("how", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_stops_a_command_with_a_line_and_a_status_of_its_own(how: signal.Signals) -> None:
    console = a_console()
    before = signal.getsignal(signal.SIGTERM)

    with pytest.raises(typer.Exit) as ended, endings(console):
        signal.raise_signal(how)

    assert ended.value.exit_code == INTERRUPTED
    assert printed(console) == "stopped; the same command goes on from here\n"
    assert signal.getsignal(signal.SIGTERM) is before


def test_what_a_person_must_mend_is_one_line_on_stderr_and_status_1(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(typer.Exit) as ended, endings(a_console()):
        raise UserError("StoreFull", "the disk is full; free space")

    assert ended.value.exit_code == 1
    assert capsys.readouterr().err == "StoreFull: the disk is full; free space\n"


def test_an_error_that_nobody_foresaw_is_not_hidden() -> None:
    with pytest.raises(ZeroDivisionError), endings(a_console()):
        raise ZeroDivisionError


def test_a_runs_sites_are_those_that_its_selector_matches_in_order_of_name() -> None:
    resource = a_run(sites={"selector": {"matchLabels": {"study": "triage"}}}).resource
    sites = [a_site(name) for name in ("c", "a", "b")]
    labelled = [
        one.model_copy(update={"metadata": one.metadata.model_copy(update={"labels": {"study": study}})})
        for one, study in zip(sites, ("triage", "triage", "other"), strict=True)
    ]

    assert [site.name for site in matching(resource, labelled)] == ["a", "c"]


def test_volumes_are_beside_the_yaml_whether_a_file_or_its_folder_is_named(tmp_path: Path) -> None:
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
def test_files_that_hold_no_run_or_several_are_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str], runs: list[str]) -> None:
    site = a_document("EdgeSite", "ward")
    file = a_file(tmp_path, "all.yaml", site, *(a_document("FederatedFineTune", name) for name in runs))

    with pytest.raises(typer.Exit) as ended:
        load_one([file])

    assert ended.value.exit_code == 2
    assert f"these files hold {len(runs)} FederatedFineTunes" in capsys.readouterr().err


def test_a_run_whose_sites_are_not_among_the_files_is_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    a_file(tmp_path, "run.yaml", a_document("FederatedFineTune", "run"))

    with pytest.raises(typer.Exit) as left:
        load_one([tmp_path])

    assert left.value.exit_code == 2
    assert "these files hold no EdgeSite that run selects" in capsys.readouterr().err


def test_the_objects_of_a_folder_come_from_all_its_yaml_files_in_order(tmp_path: Path) -> None:
    a_file(tmp_path, "b.yaml", a_document("EdgeSite", "second"), a_document("EdgeSite", "third"))
    a_file(tmp_path, "a.yaml", a_document("FederatedFineTune", "run"), a_document("EdgeSite", "first"))
    a_file(tmp_path, "notes.txt", {"neither": "here"})

    run, sites = load_one([tmp_path])

    assert run.metadata.name == "run"
    assert [site.name for site in sites] == ["first", "second", "third"]


def test_a_file_that_cannot_be_read_is_told_with_what_stands_in_the_way(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    a_file(tmp_path, "run.yaml", a_document("FederatedFineTune", "run"))

    with pytest.raises(typer.Exit) as ended:
        load([tmp_path / "run.yaml" / "deeper.yaml"])

    assert ended.value.exit_code == 2
    assert "it cannot be read (Not a directory): check its permissions" in capsys.readouterr().err
