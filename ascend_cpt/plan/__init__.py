"""Plans a run before a cluster is used: checks of the parallel layout, memory, time and disk estimates."""
