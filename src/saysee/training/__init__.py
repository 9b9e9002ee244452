"""Training: objective, loop, processes, checkpoints, log and validation."""
