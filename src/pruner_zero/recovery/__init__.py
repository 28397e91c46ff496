"""Recovery: fine-tuning of a pruned model that keeps its zeros."""
