"""Layout search: candidates, recomputation and layers per stage, and ranking."""
