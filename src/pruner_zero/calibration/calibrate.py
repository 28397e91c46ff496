"""Statistics of the dense model, each kind collected once and only when something needs it."""

from collections import deque
from collections.abc import Iterable
from pathlib import Path

import torch
from torch import Tensor

from pruner_zero.cache import default_cache
from pruner_zero.calibration.gradients import collect_gradients, gradient_windows
from pruner_zero.calibration.inputs import collect_inputs
from pruner_zero.calibration.offloaded_gradients import (
    open_journal,
    store_gradients,
    write_gradients,
)
from pruner_zero.calibration.store import Kind, StatisticsStore, cache_key
from pruner_zero.calibration.window_file import WindowFile
from pruner_zero.files import locked
from pruner_zero.journal import Journal
from pruner_zero.models import (
    Activations,
    LanguageModel,
    OffloadedModel,
    check_tokens,
    find_blocks,
    find_matrices,
)
from pruner_zero.progress import SILENT, Progress
from pruner_zero.text import Windows


def open_store(
    language_model: LanguageModel,
    windows: Windows,
    *,
    gradient_seqlen: int | None = None,
    folder: Path | None = None,
) -> StatisticsStore:
    """The store for this model, these windows and settings, under `folder` (default: the cache).

    What the key is made of: all weights and the configuration
    of the model, all tokens, how G is made of them and the version of torch.
    """
    settings = {
        "model": language_model.fingerprint(),
        "windows": windows.sha256,
        "shape": list(windows.tokens.shape),
        "torch": torch.__version__,
        "format": 1,
    }
    if gradient_seqlen is not None:
        settings["gradient_seqlen"] = gradient_seqlen
    return StatisticsStore((folder or default_cache()) / cache_key(settings), settings)


def calibrate(
    language_model: LanguageModel,
    windows: Windows,
    kinds: Iterable[Kind],
    store: StatisticsStore,
    *,
    gradient_seqlen: int | None = None,
    progress: Progress = SILENT,
) -> None:
    """Fill `store` with the `kinds` of statistics it lacks, of the dense model, for every matrix.

    G costs a backward pass over the windows, cut as `gradient_windows` says; X and gram together
    one forward pass, block by block. With an offloaded model both go on where an interrupted call
    stood.
    Raises what `collect_gradients` raises, and PrunerZeroError on a full disk or where another
    process fills the same store.
    """
    check_tokens(language_model.model, windows.tokens)
    wanted = frozenset(kinds)
    if all(store.has(kind) for kind in wanted):
        return
    with locked(store.folder):
        missing = {kind for kind in wanted if not store.has(kind)}
        if "G" in missing:
            pieces = gradient_windows(windows.tokens, gradient_seqlen)
            _calibrate_gradients(language_model, pieces, store, progress)
        if missing & {"X", "gram"}:
            _calibrate_inputs(language_model, windows, store, "gram" in missing, progress)


def _calibrate_gradients(
    language_model: LanguageModel,
    windows: Tensor,
    store: StatisticsStore,
    progress: Progress,
) -> None:
    if isinstance(language_model, OffloadedModel):
        store_gradients(language_model, windows, store, progress=progress)
        return
    model = language_model.model
    matrices = find_matrices(model)
    found = collect_gradients(model, matrices, windows, progress=progress)
    digests = {}
    for block in range(len(find_blocks(model))):
        own = {matrix.name: found.pop(matrix.name) for matrix in matrices if matrix.block == block}
        digests[block] = write_gradients(store, block, own, progress)
    store.commit("G", digests)


def _calibrate_inputs(
    language_model: LanguageModel,
    windows: Windows,
    store: StatisticsStore,
    gram: bool,
    progress: Progress,
) -> None:
    """Run the dense model once; an offloaded one from where an interrupted call stood."""
    model = language_model.model
    matrices = find_matrices(model)
    kinds: list[Kind] = ["X", "gram"] if gram else ["X"]
    journal = None
    if isinstance(language_model, OffloadedModel):
        journal = open_journal(store.folder / "inputs.partial", {**store.settings, "kinds": kinds})
    first = len(journal.lines) if journal else 0

    def activations(block: int) -> Activations:
        return WindowFile(_inputs_of(journal, block), len(windows)) if journal else []

    nothing: deque[Tensor] = deque(maxlen=0)
    calls = language_model.block_calls(windows.tokens, nothing if first else activations(0))
    hidden = WindowFile.open(_inputs_of(journal, first)) if journal and first else calls.hidden
    digests = {kind: dict[int, str]() for kind in kinds}
    for line in journal.lines if journal else []:
        for kind in kinds:
            digests[kind][line["block"]] = line[kind]
    depth = len(find_blocks(model))
    for index in progress.track(range(first, depth), "activations", depth - first):
        own = [matrix for matrix in matrices if matrix.block == index]
        with language_model.block(index) as block:
            sums, outputs = collect_inputs(
                block,
                own,
                hidden,
                calls.arguments[index],
                gram=gram,
                outputs=activations(index + 1),
            )
        statistics = sums.statistics(own, len(windows))
        for kind in kinds:
            found = {name: getattr(one, kind) for name, one in statistics.items()}
            digests[kind][index] = store.write(kind, index, found)
        if journal and isinstance(outputs, WindowFile):
            files = {f"../{store.file(kind, index).name}": digests[kind][index] for kind in kinds}
            journal.append(
                {"block": index, **{kind: digests[kind][index] for kind in kinds}},
                {**files, outputs.path.name: outputs.sha256},
                [_inputs_of(journal, index).name],
            )
        hidden = outputs
        # Lest this block's statistics outlive it.
        del statistics, found
    for kind in kinds:
        store.commit(kind, digests[kind])
    if journal:
        journal.discard()


def _inputs_of(journal: Journal | None, block: int) -> Path:
    assert journal is not None
    return journal.folder / f"hidden-{block:04d}.safetensors"
