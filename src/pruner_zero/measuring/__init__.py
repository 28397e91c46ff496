"""Measuring models: perplexity, tasks, speed, and many pruning methods in one table."""
