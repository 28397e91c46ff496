"""Saving a pruned model so that plain `from_pretrained` loads it."""

from pathlib import Path

from pruner_zero.files import writing
from pruner_zero.models.language_model import LanguageModel
from pruner_zero.models.read import quiet


def save_model(language_model: LanguageModel, folder: Path, shard_size: str = "5GB") -> None:
    """Write weights (dense safetensors, zeros included), configuration and tokenizer to `folder`.

    Raises PrunerZeroError where the disk is full or the folder is not writable.
    """
    with writing(folder), quiet():
        folder.mkdir(parents=True, exist_ok=True)
        language_model.model.save_pretrained(folder, max_shard_size=shard_size)
        if language_model.tokenizer is not None:
            language_model.tokenizer.save_pretrained(folder)
