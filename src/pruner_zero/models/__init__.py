"""Language models: loading, their decoder blocks and prunable matrices, running, saving."""
