"""How many processes a whole run takes on this machine: real processes, with a stand-in for what the trainer computes."""

import sys
from pathlib import Path

import serving_stand_in
from stand_in_runs import StandInPlacement, a_run

from fedpipe_operator.backend import JobResources
from fedpipe_operator.local import LocalBackend, ProcessSettings
from fedpipe_operator.local.session import Session
from fedpipe_operator.rounds import Run
from fedpipe_operator.store.address import DirectoryAddress


class LimitedPlacement(StandInPlacement):
    """Every site claims a processor and 8 GiB."""

    def resources(self, run: Run, site: str) -> JobResources:
        del run
        return JobResources(memory_bytes=8 * 2**30, cpus=1) if site else JobResources()


def test_a_site_keeps_one_process_for_its_profile_all_its_rounds_and_all_evaluations(tmp_path: Path) -> None:
    record = tmp_path / "record"
    trainer = (sys.executable, serving_stand_in.__file__, str(record))
    backend = LocalBackend(tmp_path / "run", max_concurrent=2, processes=ProcessSettings(trainer=trainer, processors=2, cgroup=None))
    session = Session(a_run(), backend, LimitedPlacement(), DirectoryAddress(root=str(tmp_path / "store")), resumed_at=0.0)
    try:
        while not session.is_finished:
            session.reconcile()
            backend.wait(1)
    finally:
        backend.close()

    assert session.failure is None
    tasks = [line.split() for line in record.read_text().splitlines()]
    assert {kind for _, _, kind in tasks} == {"profile", "dry-export", "train", "evaluate", "export"}
    processes = {site: {pid for pid, of, _ in tasks if of == site} for site in ("site-a", "site-b", "site-c")}
    assert {site: len(pids) for site, pids in processes.items()} == {"site-a": 1, "site-b": 1, "site-c": 1}
