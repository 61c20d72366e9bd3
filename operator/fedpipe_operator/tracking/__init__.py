"""A run's figures for the trackers that its spec names: an MLflow server, and TensorBoard's event files in the run's store.

The store is the only source: `content` makes figures of the operator's own records, `event_files` their bytes; `mlflow` and `tensorboard`
write what is not there yet, so each may be repeated or killed anywhere; `trackers` does it in threads that no reconcile waits for.
"""
