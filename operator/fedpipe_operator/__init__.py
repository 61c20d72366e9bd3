"""The operator: it watches runs and sites, decides the next step of each run, and takes it through a door."""
