"""Statistics of the dense model, each kind collected once and only when something needs it."""

from collections.abc import Iterable
from pathlib import Path

import torch

from pruner_zero.cache import default_cache
from pruner_zero.calibration.gradients import GradientNorm, collect_gradients
from pruner_zero.calibration.inputs import collect_inputs
from pruner_zero.calibration.store import Kind, StatisticsStore, cache_key
from pruner_zero.files import locked
from pruner_zero.models import (
    LanguageModel,
    check_tokens,
    find_blocks,
    find_matrices,
    record_block_calls,
)
from pruner_zero.progress import SILENT, Progress
from pruner_zero.text import Windows


def open_store(
    language_model: LanguageModel,
    windows: Windows,
    *,
    norm: GradientNorm = "l2",
    folder: Path | None = None,
) -> StatisticsStore:
    """The store for this model, these windows and settings, under `folder` (default: the cache).

    What the key is made of: all weights and the configuration
    of the model, all tokens, the norm of G and the version of torch.
    """
    settings = {
        "model": language_model.fingerprint(),
        "windows": windows.sha256,
        "shape": list(windows.tokens.shape),
        "gradient_norm": norm,
        "torch": torch.__version__,
        "format": 1,
    }
    return StatisticsStore((folder or default_cache()) / cache_key(settings), settings)


def calibrate(
    language_model: LanguageModel,
    windows: Windows,
    kinds: Iterable[Kind],
    store: StatisticsStore,
    *,
    norm: GradientNorm = "l2",
    progress: Progress = SILENT,
) -> None:
    """Fill `store` with the `kinds` of statistics it lacks, of the dense model, for every matrix.

    G costs a backward pass over the windows; X and gram together one forward pass, block
    by block. Raises what `collect_gradients` raises, and PrunerZeroError on a full disk or
    where another process fills the same store.
    """
    check_tokens(language_model.model, windows.tokens)
    wanted = frozenset(kinds)
    if all(store.has(kind) for kind in wanted):
        return
    with locked(store.folder):
        missing = {kind for kind in wanted if not store.has(kind)}
        if "G" in missing:
            _calibrate_gradients(language_model, windows, store, norm, progress)
        if missing & {"X", "gram"}:
            _calibrate_inputs(language_model, windows, store, "gram" in missing, progress)


def _calibrate_gradients(
    language_model: LanguageModel,
    windows: Windows,
    store: StatisticsStore,
    norm: GradientNorm,
    progress: Progress,
) -> None:
    model = language_model.model
    matrices = find_matrices(model)
    found = collect_gradients(model, matrices, windows.tokens, norm=norm, progress=progress)
    digests = {}
    for block in range(len(find_blocks(model))):
        own = {matrix.name: found.pop(matrix.name) for matrix in matrices if matrix.block == block}
        silent = [name for name, G in own.items() if not G.any()]
        if silent:
            progress.note(f"no gradient reaches {', '.join(silent)}: G is zero there")
        digests[block] = store.write("G", block, own)
    store.commit("G", digests)


def _calibrate_inputs(
    language_model: LanguageModel,
    windows: Windows,
    store: StatisticsStore,
    gram: bool,
    progress: Progress,
) -> None:
    model = language_model.model
    matrices = find_matrices(model)
    calls = record_block_calls(model, windows.tokens)
    hidden = calls.hidden
    digests: dict[Kind, dict[int, str]] = {"X": {}, "gram": {}}
    blocks = find_blocks(model)
    for index in progress.track(range(len(blocks)), "activations", len(blocks)):
        own = [matrix for matrix in matrices if matrix.block == index]
        statistics, hidden = collect_inputs(
            blocks[index], own, hidden, calls.arguments[index], gram=gram
        )
        squares = {name: one.X for name, one in statistics.items()}
        digests["X"][index] = store.write("X", index, squares)
        if gram:
            grams = {name: one.gram for name, one in statistics.items() if one.gram is not None}
            digests["gram"][index] = store.write("gram", index, grams)
    store.commit("X", digests["X"])
    if gram:
        store.commit("gram", digests["gram"])
