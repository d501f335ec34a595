"""Plans a run before a cluster is used: checks the parallel layout and estimates memory, time and disk space."""
