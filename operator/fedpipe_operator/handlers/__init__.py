"""The operator on a cluster: kopf's watches fill a cache, events enqueue keys, a controller reconciles each key in a thread.

`watches` and `nodes` alone import kopf. `enqueue` is the table of which event enqueues which key; `controller` runs the queues.
"""
