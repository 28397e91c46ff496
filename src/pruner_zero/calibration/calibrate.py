"""Statistics of the dense model: each kind is collected once, when something needs it, and kept.

On disk there is one file a block and kind, which is checked when it is read.
"""

import json
import weakref
from collections.abc import Collection, Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from importlib import metadata
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from pruner_zero.cache import cache_key, filling, use
from pruner_zero.calibration.gradients import check_gradients, collect_gradients
from pruner_zero.calibration.statistics import (
    ForwardStatistic,
    GradientStatistic,
    Kind,
    MaskPriceStatistic,
    MatrixStatistics,
    select,
)
from pruner_zero.calibration.walk import Walk, WindowFile
from pruner_zero.devices import CPU
from pruner_zero.errors import PrunerZeroError
from pruner_zero.files import default_cache, sha256, write_json, writing
from pruner_zero.journal import Journal
from pruner_zero.models.block_calls import Activations
from pruner_zero.models.language_model import LanguageModel, check_tokens
from pruner_zero.models.matrices import find_blocks, find_matrices
from pruner_zero.progress import note
from pruner_zero.tensor_file import TensorFile, write_tensors
from pruner_zero.text.token_windows import Windows
from pruner_zero.version import __version__

# Checksums of files by kind and block.
Digests = dict[Kind, dict[int, str]]


@dataclass
class StatisticsStore:
    """Statistics of a dense model under `folder`, written block by block.

    A kind is present once it was written for all blocks. One that is damaged or incomplete is
    absent, and so is collected again. settings: what the statistics were made with. model: its
    name. The folder is created when something is written; while this value is there no other
    process deletes what it wrote, or found with `has`, from the cache.
    """

    folder: Path
    settings: dict[str, Any] = field(default_factory=dict)
    model: str = ""
    _verified: set[Kind] = field(default_factory=set, init=False, repr=False, compare=False)
    _in_use: bool = field(default=False, init=False, repr=False, compare=False)

    def has(self, kind: Kind) -> bool:
        """Whether `kind` is there for every block, each file with its checksum.

        Files are hashed the first time that a kind is found to be present, and never again by
        this store: hashing all of them takes long, and what has been verified or was written by
        this store need not be checked again.
        """
        if kind not in self._verified:
            if self.folder.exists():
                self._use()
            digests = self._digests(kind)
            paths = [self.file(kind, block) for block in range(len(digests))]
            if not digests or not all(
                path.is_file() and sha256(path) == digests.get(path.name) for path in paths
            ):
                return False
            self._verified.add(kind)
        return True

    def write(self, kind: Kind, block: int, tensors: Mapping[str, Tensor]) -> str:
        """Write one statistic of one block, by matrix name; return the file's checksum.

        Matrices that share one tensor share it on disk too.
        """
        self._use()
        self._verified.discard(kind)
        owners: dict[int, str] = {}
        aliases = {
            name: owners.setdefault(tensor.data_ptr(), name) for name, tensor in tensors.items()
        }
        unique = {name: tensors[name] for name in set(aliases.values())}
        return write_tensors(self.file(kind, block), unique, {"aliases": json.dumps(aliases)})

    def write_block(
        self, block: int, statistics: Mapping[str, MatrixStatistics], kinds: Collection[Kind]
    ) -> dict[Kind, str]:
        """Write `kinds` of statistics of one block, given by matrix name; checksums by kind.

        A note lists the matrices that no gradient reached.
        """
        digests = {}
        for kind in kinds:
            tensors = {name: values[kind] for name, values in statistics.items() if kind in values}
            if select(GradientStatistic, [kind]):
                silent = [name for name, tensor in tensors.items() if not tensor.any()]
                if silent:
                    note(f"no gradient reaches {', '.join(silent)}: {kind} is zero there")
            digests[kind] = self.write(kind, block, tensors)
        return digests

    def commit(self, digests: Digests) -> None:
        """Declare kinds complete, by the checksum of each block's file."""
        for kind, by_block in digests.items():
            names = {self.file(kind, block).name: digest for block, digest in by_block.items()}
            write_json(self.folder / f"{kind}.json", names)
            if by_block:
                self._verified.add(kind)

    def read(
        self,
        kind: Kind,
        block: int,
        names: Collection[str] | None = None,
        *,
        device: torch.device = CPU,
    ) -> dict[str, Tensor]:
        """The statistics of one block by matrix name: all, or those of `names`, on `device`.

        Raises PrunerZeroError on a broken file.
        """
        with self._reading(kind, block) as (file, owners):
            wanted = {name: owners[name] for name in (owners if names is None else names)}
            unique = {name: file.read(name).to(device) for name in set(wanted.values())}
        return {name: unique[owner] for name, owner in wanted.items()}

    def owners(self, kind: Kind, block: int) -> dict[str, str]:
        """For each matrix of one block, the one under whose name their shared tensor is stored.

        Raises PrunerZeroError on a broken file.
        """
        with self._reading(kind, block) as (_file, owners):
            return owners

    @contextmanager
    def _reading(self, kind: Kind, block: int) -> Iterator[tuple[TensorFile, dict[str, str]]]:
        """The file of one block and its owners. Raises PrunerZeroError where reading fails."""
        path = self.file(kind, block)
        try:
            file = TensorFile(path)
            yield file, json.loads(file.metadata["aliases"])
        except (PrunerZeroError, KeyError, ValueError, TypeError, AttributeError) as error:
            raise PrunerZeroError(f"{path} is damaged: delete its folder and run again") from error

    def _use(self) -> None:
        """Create the folder if missing, and keep other processes from deleting it from now on."""
        if not self._in_use:
            with writing(self.folder):
                self.folder.mkdir(parents=True, exist_ok=True)
            weakref.finalize(self, use(self.folder, self.model).close)
            self._in_use = True

    def file(self, kind: Kind, block: int) -> Path:
        """Where the statistics of one block are."""
        return self.folder / f"{kind}-{block:04d}.safetensors"

    def _digests(self, kind: Kind) -> dict[str, str]:
        """The checksums of all blocks' files; none where the manifest is absent or broken."""
        try:
            digests = json.loads((self.folder / f"{kind}.json").read_text())
        except (OSError, ValueError):
            return {}
        return digests if isinstance(digests, dict) else {}


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
        "format": 3,
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
        needed = wanted | ({"X"} if select(MaskPriceStatistic, wanted) else set())
        missing = {kind for kind in needed if not store.has(kind)}
        if select(GradientStatistic, missing):
            check_gradients(find_matrices(language_model.model))
        if select(ForwardStatistic, missing):
            _forward(language_model, windows.tokens, missing, store)
        if select(GradientStatistic, missing):
            _backward(language_model, windows.tokens, missing, store)


def _backward(
    language_model: LanguageModel, windows: Tensor, kinds: Iterable[Kind], store: StatisticsStore
) -> None:
    """Collect the statistics of gradients among `kinds`."""
    statistics = select(GradientStatistic, kinds)
    if language_model.collect_gradients(windows, statistics, store):
        return
    model = language_model.model
    matrices = find_matrices(model)
    norms: dict[str, Tensor] = {}
    if select(MaskPriceStatistic, statistics):
        for block in range(len(find_blocks(model))):
            norms |= store.read("X", block)
    results = collect_gradients(model, matrices, windows, statistics, norms=norms)
    digests: Digests = {kind: {} for kind in statistics}
    for block in range(len(find_blocks(model))):
        names = [matrix.name for matrix in matrices if matrix.block == block]
        # Taken out of `results`, so that the tensors are freed block by block.
        of_block = {name: results.pop(name) for name in names}
        for kind, digest in store.write_block(block, of_block, statistics).items():
            digests[kind][block] = digest
    store.commit(digests)


def _forward(
    language_model: LanguageModel, windows: Tensor, kinds: Iterable[Kind], store: StatisticsStore
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
