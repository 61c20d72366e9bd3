"""The operator: it watches runs and sites, decides the next step of each run, and has a job backend execute it."""
