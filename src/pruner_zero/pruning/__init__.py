"""Pruning: from statistics to masks to a pruned model, block by block."""
