"""Saving a pruned model so that plain `from_pretrained` loads it."""

import shutil
from pathlib import Path
from stat import S_IMODE

from transformers import PreTrainedModel

from pruner_zero.files import writing
from pruner_zero.models.block_sizes import copy_code
from pruner_zero.models.language_model import LanguageModel
from pruner_zero.models.quiet import quiet


def save_model(language_model: LanguageModel, folder: Path, shard_size: str = "5GB") -> None:
    """Write weights (dense safetensors, zeros included), configuration and tokenizer to `folder`.

    A license beside the files that the model was read from is copied. Raises PrunerZeroError where
    the disk is full or the folder is not writable.
    """
    with writing(folder), quiet():
        folder.mkdir(parents=True, exist_ok=True)
        language_model.model.save_pretrained(folder, max_shard_size=shard_size)
        # safetensors makes its files readable by their owner alone, whatever the umask.
        usual = S_IMODE((folder / "config.json").stat().st_mode)
        for path in folder.glob("*.safetensors"):
            path.chmod(usual)
        if language_model.tokenizer is not None:
            language_model.tokenizer.save_pretrained(folder)
        copy_code(language_model.model.config, folder)
        copy_license(language_model.model, folder)


def copy_license(model: PreTrainedModel, folder: Path) -> None:
    """Copy the license beside the files that `model` was read from, if there is one."""
    # The name is empty for a model that was made in memory.
    for path in Path(model.name_or_path).glob("LICENSE*") if model.name_or_path else ():
        if path.is_file() and path.resolve().parent != folder.resolve():
            shutil.copyfile(path, folder / path.name)
