"""The settings of every command: one pydantic model each, from which its options are made.

Nothing here imports torch, so that `--help` and shell completion answer at once.
"""
