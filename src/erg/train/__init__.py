"""Training: the run as data, the loop, checkpoints, preemption, watching."""
