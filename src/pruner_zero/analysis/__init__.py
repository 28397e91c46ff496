"""Analysis of a search: what its good metrics share, and whether its rungs agree."""
