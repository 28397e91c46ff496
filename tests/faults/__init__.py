"""The fault catalogue: every fault is really made, nothing may be lost, one clear line tells it."""

# The variable that decides all random moments.
SEED = "FAULT_SEED"
