"""Monitoring: step records, sinks (console, metrics.jsonl, trackers), guards, the loss plot and the report."""
