"""Fine-tuning: which weights of a checkpoint learn, the samples of each step, the steps, and the results."""
