"""Statistics on disk: one file a block and kind, checked when read, reused by the next metric."""

import json
from collections.abc import Collection, Mapping
from dataclasses import dataclass, field
from hashlib import sha256 as new_sha256
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor

from pruner_zero.devices import CPU
from pruner_zero.errors import PrunerZeroError
from pruner_zero.files import sha256, write_atomic, writing
from pruner_zero.tensor_file import TensorFile, write_tensors

Kind = Literal["G", "X", "gram"]


def cache_key(settings: Mapping[str, Any]) -> str:
    """A name for everything that decides a statistic: its settings as JSON, hashed."""
    return new_sha256(json.dumps(settings, sort_keys=True).encode()).hexdigest()[:20]


@dataclass
class StatisticsStore:
    """Statistics of a dense model under `folder`, written block by block.

    A kind counts as present once it was written for all blocks; what is damaged or
    incomplete is absent, and so is collected again.
    """

    folder: Path
    settings: dict[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        with writing(self.folder):
            self.folder.mkdir(parents=True, exist_ok=True)

    def has(self, kind: Kind) -> bool:
        """Whether `kind` is there for every block, each file with its checksum."""
        digests = self._digests(kind)
        blocks = range(len(digests))
        return bool(digests) and all(
            (path := self.file(kind, block)).is_file() and sha256(path) == digests.get(path.name)
            for block in blocks
        )

    def write(self, kind: Kind, block: int, tensors: Mapping[str, Tensor]) -> str:
        """Store the statistics of one block by matrix name; return the file's checksum.

        Matrices that share one tensor share it on disk too.
        """
        owners: dict[int, str] = {}
        aliases = {
            name: owners.setdefault(tensor.data_ptr(), name) for name, tensor in tensors.items()
        }
        unique = {name: tensors[name] for name in set(aliases.values())}
        return write_tensors(self.file(kind, block), unique, {"aliases": json.dumps(aliases)})

    def commit(self, kind: Kind, digests: Mapping[int, str]) -> None:
        """Declare `kind` complete: the checksum of each block's file, and what it was made with."""
        if self.settings:
            text = json.dumps(self.settings, indent=2, sort_keys=True)
            write_atomic(self.folder / "settings.json", text + "\n")
        names = {self.file(kind, block).name: digest for block, digest in digests.items()}
        write_atomic(self.folder / f"{kind}.json", json.dumps(names, indent=2) + "\n")

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
        path = self.file(kind, block)
        try:
            file = TensorFile(path)
            aliases: dict[str, str] = json.loads(file.metadata["aliases"])
            wanted = {name: aliases[name] for name in (aliases if names is None else names)}
            unique = {name: file.read(name).to(device) for name in set(wanted.values())}
        except Exception as error:
            raise PrunerZeroError(f"{path} is damaged: delete its folder and run again") from error
        return {name: unique[owner] for name, owner in wanted.items()}

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
