"""What people are shown of a run: `report.html`, one file that needs nothing else, and the closing table in the terminal.

`read_record` gathers a run from its store, `write_report` makes the page of it, `closing_table` and
`samples_table` are for the command line. Only `read_record` touches the world; the rest are values in, values out.
"""

from fedpipe_operator.report.closing import ClosingRow, closing_rows, closing_table, samples_table
from fedpipe_operator.report.page import write_report
from fedpipe_operator.report.record import RunRecord, read_record

__all__ = ["ClosingRow", "RunRecord", "closing_rows", "closing_table", "read_record", "samples_table", "write_report"]
