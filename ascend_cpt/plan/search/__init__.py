"""Search for layouts: candidates, recomputation and layers per stage, ranking."""
