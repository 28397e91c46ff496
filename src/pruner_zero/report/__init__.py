"""Reports for people: one self-contained HTML page, and its figures."""
