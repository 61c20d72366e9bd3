"""The trainer: one task in (a JSON file), one result out, nothing else known of the world.

The operator imports `fedpipe_trainer.contract` and nothing more, so this file imports nothing heavy.
"""
