"""Low-rank adapters on MindFormers' linear layers."""
