"""The reports of runs over HTTP, off by default: read-only, drawn once a round, and only for callers who may `get` the run.

`server` has the sockets and their bounds, `answers` says what a request gets, `gate` who may read, `reports` finds a run, `drawing` has its
page drawn by a process of its own (`draw`). Every replica answers: what it needs is in its watches, the API server and the store.
Nothing here imports `report` but that process: plotly and its figures are never in the operator's memory.
"""
