"""What is tried next: samplers of our own, which know the costs, and Optuna's, asked for architectures of a space."""
