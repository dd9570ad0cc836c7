"""The loop and its helpers: optimiser, schedule, average of weights, records, checkpoints."""
