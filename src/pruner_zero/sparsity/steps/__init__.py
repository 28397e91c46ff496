"""What can follow a mask: swaps, SparseGPT's sweep, least squares; steps of one shape by name."""
