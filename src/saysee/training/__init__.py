"""Training: the loop, its checkpoints, its log and the signs of failure that it watches for."""
