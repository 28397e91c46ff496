"""`python -m pruner_zero`."""

from pruner_zero.cli.app import main

main()
