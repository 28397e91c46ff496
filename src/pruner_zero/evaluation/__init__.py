"""How good a model still is: perplexity, scores in zero-shot and few-shot tasks; how fast."""
