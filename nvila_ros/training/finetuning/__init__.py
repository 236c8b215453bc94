"""Fine-tuning: what of a checkpoint learns, on which samples, step by step, and what becomes of it."""
