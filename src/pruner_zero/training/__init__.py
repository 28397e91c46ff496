"""Training of what pruning leaves: one block, or the whole model, in little memory."""
