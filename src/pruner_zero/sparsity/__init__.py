"""Scores → mask → weights: patterns, exact selection, better masks, updates under a mask."""
