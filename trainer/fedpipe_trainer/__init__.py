"""The trainer: it reads a task (a JSON file), performs it, and writes a result.

The operator imports only `fedpipe_trainer.contract`, so this file must not import large libraries.
"""
