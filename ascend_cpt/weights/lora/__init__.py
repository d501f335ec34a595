"""Low-rank adapters in folders: the weights they belong to, merging, and PEFT's format."""
