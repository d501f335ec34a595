"""What a run tells: step records, sinks (console, metrics.jsonl) and the loss picture."""
