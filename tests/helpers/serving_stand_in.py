"""A process in the place of a serving trainer: it performs every task of a real run as `trainer_results.good_trainer` does.

It appends a line with its process id, the site and the kind of task to the file that its argument names.
"""

import os
import sys
from pathlib import Path
from tempfile import TemporaryDirectory

from trainer_results import good_trainer, perform

from fedpipe_trainer.contract import TaskEnded, parse_task


def main(record: str) -> None:
    """Perform the tasks whose files standard input names, a path a line, until its end."""
    for line in iter(sys.stdin.readline, ""):
        path = line.rstrip("\n")
        task = parse_task(Path(path).read_text())
        with Path(record).open("a") as file:
            file.write(f"{os.getpid()} {task.site or '-'} {task.kind}\n")
        with TemporaryDirectory() as folder:
            perform(good_trainer, task, Path(folder))
        sys.stdout.write(TaskEnded(ended=path, exit_code=0).model_dump_json(by_alias=True) + "\n")
        sys.stdout.flush()


if __name__ == "__main__":
    main(*sys.argv[1:])
