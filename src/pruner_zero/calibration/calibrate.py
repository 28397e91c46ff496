"""Statistics of the dense model, each kind collected once and only when something needs it."""

from collections.abc import Iterable
from importlib import metadata
from pathlib import Path

import torch
from torch import Tensor

from pruner_zero.cache import cache_key, filling
from pruner_zero.calibration.gradients import collect_gradients
from pruner_zero.calibration.statistics import ForwardStatistic, GradientStatistic, Kind, select
from pruner_zero.calibration.store import Digests, StatisticsStore
from pruner_zero.calibration.walk import Walk, WindowFile
from pruner_zero.files import default_cache
from pruner_zero.journal import Journal
from pruner_zero.models.blocks import Activations
from pruner_zero.models.language_model import LanguageModel, check_tokens
from pruner_zero.models.structure import find_blocks, find_matrices
from pruner_zero.text.windows import Windows
from pruner_zero.version import __version__


def open_store(
    language_model: LanguageModel,
    windows: Windows,
    *,
    folder: str | Path | None = None,
    fingerprint: str | None = None,
) -> StatisticsStore:
    """The store for this model and these windows, under `folder` (default: the cache).

    Its key is made of all weights and the configuration of the model, all tokens and the versions
    of torch and transformers. fingerprint: that of the dense model if it is known already, since
    computing it takes long.
    """
    settings = {
        "model": fingerprint or language_model.fingerprint(),
        "windows": windows.sha256,
        "shape": list(windows.tokens.shape),
        "torch": torch.__version__,
        "transformers": metadata.version("transformers"),
        "pruner_zero": __version__,
        # Counted up where what is kept changes between versions.
        "format": 1,
    }
    cache = Path(folder) if folder is not None else default_cache()
    return StatisticsStore(cache / cache_key(settings), settings, language_model.name)


def calibrate(
    language_model: LanguageModel, windows: Windows, kinds: Iterable[Kind], store: StatisticsStore
) -> None:
    """Fill `store` with the `kinds` of statistics it lacks, of the dense model, for every matrix.

    store: what `open_store` gave for this model and these windows. Statistics of gradients cost a
    backward pass over the windows, all others together one forward pass, block by block. An
    offloaded model is read block by block for both, and an interrupted call continues where it
    stopped. Raises what `collect_gradients` and `collect_inputs` raise, and PrunerZeroError on a
    full disk or where another process fills the same store.
    """
    check_tokens(language_model.model, windows.tokens)
    wanted = frozenset(kinds)
    if all(store.has(kind) for kind in wanted):
        return
    with filling(store.folder):
        missing = {kind for kind in wanted if not store.has(kind)}
        if select(GradientStatistic, missing):
            _backward(language_model, windows.tokens, missing, store)
        if select(ForwardStatistic, missing):
            _forward(language_model, windows.tokens, missing, store)


def _backward(
    language_model: LanguageModel,
    windows: Tensor,
    kinds: Iterable[Kind],
    store: StatisticsStore,
) -> None:
    """Collect the statistics of gradients among `kinds`."""
    statistics = select(GradientStatistic, kinds)
    if disk := language_model.on_disk:
        disk.collect_gradients(windows, statistics, store)
        return
    model = language_model.model
    matrices = find_matrices(model)
    results = collect_gradients(model, matrices, windows, statistics)
    digests: Digests = {kind: {} for kind in statistics}
    for block in range(len(find_blocks(model))):
        names = [matrix.name for matrix in matrices if matrix.block == block]
        # Taken out of `results`, so that the tensors are freed block by block.
        of_block = {name: results.pop(name) for name in names}
        for kind, digest in store.write_block(block, of_block, statistics).items():
            digests[kind][block] = digest
    store.commit(digests)


def _forward(
    language_model: LanguageModel,
    windows: Tensor,
    kinds: Iterable[Kind],
    store: StatisticsStore,
) -> None:
    """Collect the statistics of inputs among `kinds`, and X, in one pass over the blocks.

    The activations of an offloaded model between two blocks are on disk, with a journal from which
    an interrupted pass continues; the activations of a model in memory are in memory.
    """
    model = language_model.model
    matrices = find_matrices(model)
    statistics = select(ForwardStatistic, {"X", *kinds})
    journal = None
    if language_model.on_disk:
        settings = {**store.settings, "kinds": list(statistics)}
        journal = Journal(store.folder / "inputs.partial", settings, overwrite=True)
    written: list[dict[Kind, str]] = [line["digests"] for line in journal.lines] if journal else []
    first = len(written)

    def path(block: int) -> Path:
        assert journal is not None
        return journal.folder / f"hidden-{block:04d}.safetensors"

    def storage(block: int) -> Activations:
        return WindowFile(path(block), len(windows)) if journal else []

    walk = Walk(language_model, windows)
    dense = walk.carry(storage, WindowFile.open(path(first)) if first else None)
    for index, block in walk.blocks("activations", first):
        of_block = [matrix for matrix in matrices if matrix.block == index]
        results = dense.collect(block, index, of_block, statistics, advance=True)
        digests = store.write_block(index, results, statistics)
        # Freed before the next block's statistics, which are as large, are collected.
        del results
        written.append(digests)
        if journal and isinstance(dense.hidden, WindowFile):
            files = {f"../{store.file(kind, index).name}": digests[kind] for kind in digests}
            files[dense.hidden.path.name] = dense.hidden.sha256
            journal.append({"digests": digests}, files, [path(index).name])
    store.commit({kind: dict(enumerate(line[kind] for line in written)) for kind in statistics})
    if journal:
        journal.discard()
