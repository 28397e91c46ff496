"""Windows of text that a dense model writes itself, kept in the cache batch by batch."""

from contextlib import nullcontext
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from pruner_zero.cache import filling, use
from pruner_zero.calibration.store import cache_key
from pruner_zero.errors import PrunerZeroError
from pruner_zero.files import default_cache
from pruner_zero.models.language_model import LanguageModel, check_tokens
from pruner_zero.models.sampling import end_tokens, sample_windows, start_token, writing_dtype
from pruner_zero.tensor_file import TensorFile, write_tensors
from pruner_zero.text.mixture import SelfText
from pruner_zero.text.windows import Windows, tokens_sha256

# The most tokens and windows that are written together, as many as `prune` calibrates on by
# default. The drawn text depends on the number of windows in a batch, so that these numbers do not
# depend on --windows. Each window takes memory for a distribution over the vocabulary.
BATCH_TOKENS, BATCH_WINDOWS = 24 * 1024, 96


def self_windows(
    language_model: LanguageModel,
    windows: int,
    seqlen: int,
    seed: int,
    *,
    first: int = 0,
    folder: str | Path | None = None,
    fingerprint: str | None = None,
) -> Windows:
    """`windows` windows of `seqlen` tokens that `language_model` writes, from number `first` on.

    With the same seed, fewer windows are the first of more. They are written in batches of
    up to 24576 tokens and 96 windows, each with a generator of its own; finished batches are kept
    under `folder` (default: the cache), so that an interrupted call continues after the last batch.
    An offloaded model cannot write, and uses the text that the same model wrote in memory.
    fingerprint: that of the model if it is known already, since computing it takes long. Raises
    PrunerZeroError where that text is missing, where another process writes the same text, and as
    `start_token`, `check_tokens` and `sample_windows` do.
    """
    start, ends = start_token(language_model), end_tokens(language_model)
    dtype = writing_dtype(language_model.model)
    check_tokens(language_model.model, torch.full((1, seqlen), start))
    settings = {
        "model": fingerprint or language_model.fingerprint(),
        "seqlen": seqlen,
        "seed": seed,
        "start": start,
        "ends": sorted(ends),
        "torch": torch.__version__,
        "transformers": metadata.version("transformers"),
        "dtype": str(dtype),
        "format": 3,
    }
    cache = Path(folder) if folder is not None else default_cache()
    size = max(1, min(BATCH_TOKENS // seqlen, BATCH_WINDOWS))
    batches = _Batches(cache / f"text-{cache_key(settings)}", size, seqlen, seed)
    numbers = range(first // size, -(-(first + windows) // size))
    read = {number: batches.read(number) for number in numbers}
    written = {number: tokens for number, tokens in read.items() if tokens is not None}
    missing = [number for number in numbers if number not in written]
    if missing and language_model.on_disk:
        raise PrunerZeroError(
            "a model that stays on disk cannot write its own text: have it written once by the "
            "same command without --offload, or give a text as --calibration"
        )
    writes = filling(batches.folder) if missing else nullcontext()
    with use(batches.folder, language_model.name), writes:
        for count, number in enumerate(missing, start=1):
            tokens = sample_windows(
                language_model.model,
                size,
                seqlen,
                batches.generator(number),
                start=start,
                ends=ends,
                dtype=dtype,
                label=f"writing text {count}/{len(missing)}",
            )
            batches.write(number, tokens)
            written[number] = tokens
    tokens = torch.cat([written[number] for number in numbers])
    chosen = tokens[first - numbers.start * size :][:windows].clone()
    shown = language_model.tokenizer.convert_ids_to_tokens(start)
    return Windows(
        chosen,
        SelfText.name if not first else f"{SelfText.name}, from window {first} on",
        None,
        f"documents that the dense model wrote from {shown!r} on",
        None,
        "sampled",
        seed,
    )


@dataclass(frozen=True)
class _Batches:
    """The batches (size, seqlen) of one model and seed, a file each in `folder`."""

    folder: Path
    size: int
    seqlen: int
    seed: int

    def generator(self, number: int) -> torch.Generator:
        """A generator for one batch."""
        state = np.random.SeedSequence((self.seed, number)).generate_state(1, np.uint64)
        return torch.Generator().manual_seed(int(state[0]))

    def write(self, number: int, tokens: Tensor) -> None:
        """Keep a batch. Raises PrunerZeroError where it cannot be written."""
        write_tensors(self._path(number), {"tokens": tokens}, {"sha256": tokens_sha256(tokens)})

    def read(self, number: int) -> Tensor | None:
        """A batch that was kept; None where there is none or it is damaged."""
        path = self._path(number)
        if not path.is_file():
            return None
        try:
            file = TensorFile(path)
            tokens = file.read("tokens")
            intact = file.metadata["sha256"] == tokens_sha256(tokens)
        except (PrunerZeroError, KeyError):
            return None
        return tokens if intact and tokens.shape == (self.size, self.seqlen) else None

    def _path(self, number: int) -> Path:
        return self.folder / f"{number:04d}.safetensors"
