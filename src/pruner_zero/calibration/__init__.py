"""Statistics of weight matrices: of inputs by forward, of gradients by backward, kept on disk."""
