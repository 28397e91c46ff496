"""The search for better metrics: space, variation, evolution, fitness, archive."""
