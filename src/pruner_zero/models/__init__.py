"""Language models: loading, their decoder blocks and prunable matrices, running, saving."""

from pruner_zero.choices import Dtype
from pruner_zero.models.blocks import (
    DISCARDED,
    Activations,
    Arguments,
    BlockCalls,
    blocks_replaced,
    run_block,
    run_windows,
)
from pruner_zero.models.half_precision import in_float32
from pruner_zero.models.language_model import LanguageModel, cache_arguments, check_tokens
from pruner_zero.models.load import as_language_model, cast_weights, load_model
from pruner_zero.models.loss import next_token_loss, next_token_losses, to_perplexity
from pruner_zero.models.sampling import end_tokens, sample_windows, start_token
from pruner_zero.models.save import save_model
from pruner_zero.models.structure import (
    Matrix,
    check_finite,
    check_weights,
    common_kind,
    experts_of,
    find_blocks,
    find_matrices,
    parameters_of,
)
from pruner_zero.models.transformers_private import experts_one_by_one

__all__ = [
    "DISCARDED",
    "Activations",
    "Arguments",
    "BlockCalls",
    "Dtype",
    "LanguageModel",
    "Matrix",
    "as_language_model",
    "blocks_replaced",
    "cache_arguments",
    "cast_weights",
    "check_finite",
    "check_tokens",
    "check_weights",
    "common_kind",
    "end_tokens",
    "experts_of",
    "experts_one_by_one",
    "find_blocks",
    "find_matrices",
    "in_float32",
    "load_model",
    "load_offloaded",
    "next_token_loss",
    "next_token_losses",
    "parameters_of",
    "run_block",
    "run_windows",
    "sample_windows",
    "save_model",
    "start_token",
    "to_perplexity",
]
