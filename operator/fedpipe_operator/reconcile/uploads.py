"""The uploads in parts of a run that is deleted in the middle of its export: nothing goes on with them, and a store keeps their parts."""

from fedpipe_operator import names
from fedpipe_operator.admission import Refused
from fedpipe_operator.rounds import Run
from fedpipe_operator.rounds.admitting import Admission
from fedpipe_operator.rounds.export_files import large_files
from fedpipe_operator.store import Store


def abort_uploads(run: Run, store: Store) -> None:
    """End what the run's exports have begun and not finished. Raises as the store."""
    admission = Admission(run.ref, run.spec.task, plan=None)
    for attempt in names.Listing(frozenset(store.list(names.DRY_EXPORT))).attempts(names.dry_export_result):
        admit = admission.of_dry_export(attempt)
        data = store.read_start(names.dry_export_result(attempt), admit.at_most)
        found = None if data is None else admit.result(data)
        for key in () if found is None or isinstance(found, Refused) else large_files(found):
            store.abort_uploads(key)
