"""The search for better metrics: space, variation, algorithms, rungs, archive, hall of fame."""
