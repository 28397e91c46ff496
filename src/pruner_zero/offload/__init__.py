"""A model that stays on disk: read, calibrated and saved block by block."""
