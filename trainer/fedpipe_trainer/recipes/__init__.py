"""The four things a trainer does, each a recipe that reads top to bottom: `run(task, workplace) -> result`."""
