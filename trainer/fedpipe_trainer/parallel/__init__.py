"""Data parallel: the optimiser steps of one task on several devices of one pod, with one process for each.

The first process performs the task as it does alone: it reads the data, holds the optimiser, writes checkpoints, results and progress. The
others (`worker`) only compute gradients. In each step the first process sends them the trained parameters and their micro-batches, and adds
their gradients to its own: what follows, the proximal term, clipping and AdamW, is the same as with one process. So nothing but the first
process has a state, and whether a process fails, runs out of memory or is late is decided in one place. See
docs/decisions/data-parallel.md.

Parameters and gradients travel by torch.distributed (NCCL between GPUs, gloo between processes on a CPU), everything else by a pipe to each
worker, which also tells the end of the process at its other end.
"""

from fedpipe_trainer.parallel.group import Session, WorkerGroup, open_session, processes_of, worker_group
from fedpipe_trainer.parallel.messages import LoadBase, Piece, SessionRequest
from fedpipe_trainer.parallel.pieces import divide

__all__ = ["LoadBase", "Piece", "Session", "SessionRequest", "WorkerGroup", "divide", "open_session", "processes_of", "worker_group"]
