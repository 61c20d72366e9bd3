"""The door onto this machine: a site's work in a process of its own. For `fedpipe run` and for tests."""

from fedpipe_operator.local.backend import LocalBackend, ProcessSettings

__all__ = ["LocalBackend", "ProcessSettings"]
