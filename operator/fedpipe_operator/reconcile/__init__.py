"""One reconcile of a run, on a cluster and on one machine alike: observe, decide, apply, write the status once, record events."""
