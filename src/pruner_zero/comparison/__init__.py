"""Comparing methods on one model, in one run."""
