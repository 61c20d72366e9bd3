"""The recipes for the four kinds of tasks, each a module with a function `run(task, runtime) -> result`."""
