"""The steps after a mask, by name: swaps, SparseGPT's sweep, least squares."""
