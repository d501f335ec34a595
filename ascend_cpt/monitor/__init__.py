"""Monitoring: step records, sinks (console, metrics.jsonl, trackers), guards, loss plots and reports."""
