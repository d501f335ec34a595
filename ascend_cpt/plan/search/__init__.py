"""Search of layouts: candidates, recomputation and layers per stage, ranking."""
