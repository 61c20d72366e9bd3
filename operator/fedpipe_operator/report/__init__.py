"""The report of a run: `report.html`, a self-contained page, and the comparison table in the terminal.

`read_record` reads a run from its store, `write_report` renders the page, `content_security_policy` is what a server sends with it.
`comparison_table` and `samples_table` are for the command line. Only `read_record` does I/O; the rest is pure. `comparison` makes the runs
of the local-only baselines.
"""

from fedpipe_operator.report.page import content_security_policy, write_report
from fedpipe_operator.report.record import RunRecord, read_record
from fedpipe_operator.report.tables import ComparisonRow, comparison_rows, comparison_table, samples_table

__all__ = [
    "ComparisonRow",
    "RunRecord",
    "comparison_rows",
    "comparison_table",
    "content_security_policy",
    "read_record",
    "samples_table",
    "write_report",
]
