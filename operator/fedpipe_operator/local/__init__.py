"""The local job backend: each site's jobs run in a process of this machine. For `fedpipe run` and for tests."""

from fedpipe_operator.local.backend import LocalBackend, ProcessSettings

__all__ = ["LocalBackend", "ProcessSettings"]
