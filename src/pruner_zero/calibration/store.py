"""Statistics on disk: one file a block and kind, checked when read, reused by the next metric."""

import json
import weakref
from collections.abc import Collection, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from pruner_zero.cache import use
from pruner_zero.calibration.statistics import GradientStatistic, Kind, MatrixStatistics, select
from pruner_zero.devices import CPU
from pruner_zero.errors import PrunerZeroError
from pruner_zero.files import sha256, write_json, writing
from pruner_zero.progress import note
from pruner_zero.tensor_file import TensorFile, write_tensors

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
        self,
        block: int,
        statistics: Mapping[str, MatrixStatistics],
        kinds: Collection[Kind],
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
