"""Test suites of operators, named metrics, texts and executors, run for all of each kind."""
