"""Language models: loading, their decoder blocks and prunable matrices, running, saving."""

from pruner_zero.models.blocks import Arguments, BlockCalls, record_block_calls, run_block
from pruner_zero.models.builtin import BUILTIN_MODELS
from pruner_zero.models.language_model import (
    Dtype,
    LanguageModel,
    check_dtype,
    check_tokens,
    fingerprint,
)
from pruner_zero.models.load import as_language_model, load_model
from pruner_zero.models.loss import next_token_loss
from pruner_zero.models.save import save_model
from pruner_zero.models.structure import Matrix, check_weights, find_blocks, find_matrices

__all__ = [
    "BUILTIN_MODELS",
    "Arguments",
    "BlockCalls",
    "Dtype",
    "LanguageModel",
    "Matrix",
    "as_language_model",
    "check_dtype",
    "check_tokens",
    "check_weights",
    "find_blocks",
    "find_matrices",
    "fingerprint",
    "load_model",
    "next_token_loss",
    "record_block_calls",
    "run_block",
    "save_model",
]
