"""Whole units of a model: which of them go, and the smaller model without them."""
