"""The steps around the masks: what an interrupted distillation leaves, and how it goes on."""

from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

from pruner_zero import load_model, prune
from pruner_zero.progress import Progress, reported_to
from tests.conftest import save_sharded
from tests.pruning.test_resume import contents


class StoppedInTraining(Progress):
    """Progress that stops the program before the third step of the distillation."""

    def track(
        self, items: Iterable[Any], label: str = "", total: int | None = None
    ) -> Iterator[Any]:
        for number, item in enumerate(items):
            if label == "distillation" and number == 2:
                raise KeyboardInterrupt
            yield item


@pytest.mark.fault("a bit flipped in, or the end torn off, a journal or checkpoint")
@pytest.mark.parametrize("overwrite", [False, True])
def test_a_damaged_checkpoint_of_the_distillation_is_trained_again(
    overwrite: bool,
    llama_folder: Path,
    prose: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("pruner_zero.training.train.CHECKPOINT_SECONDS", 0.0)
    options: dict[str, Any] = {"calibration": [prose], "windows": 3, "seqlen": 24}
    options |= {"metric": "wanda", "sparsity": 0.5, "distill": 4}
    prune(llama_folder, output=tmp_path / "whole", **options)
    output = tmp_path / "out"
    with pytest.raises(KeyboardInterrupt), reported_to(StoppedInTraining()):
        prune(llama_folder, output=output, **options)
    [file] = tmp_path.glob("out.partial/blocks/training-4/steps/state-*")
    file.write_bytes(file.read_bytes()[:-1])
    prune(llama_folder, output=output, overwrite=overwrite, **options)
    actual, expected = contents(output), contents(tmp_path / "whole")
    assert actual.keys() == expected.keys()
    assert actual["model.safetensors"] == expected["model.safetensors"]


def test_a_model_on_disk_that_is_stopped_in_training_ends_as_one_in_memory(
    prose: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("pruner_zero.training.train.CHECKPOINT_SECONDS", 0.0)
    model, output = save_sharded(tmp_path / "model", "llama"), tmp_path / "out"
    options: dict[str, Any] = {"calibration": [prose], "windows": 3, "seqlen": 24}
    options |= {"metric": "wanda", "sparsity": 0.5, "distill": 4}
    prune(model, output=tmp_path / "whole", **options)
    options |= {"output": output, "offload": True}
    with pytest.raises(KeyboardInterrupt), reported_to(StoppedInTraining()):
        prune(model, **options)
    counted = Counted()
    with reported_to(counted):
        prune(model, **options)
    assert counted.steps == 2
    pairs = zip(*(load_model(path).weights() for path in (output, tmp_path / "whole")), strict=True)
    assert all(torch.equal(here, there) for (_, here), (_, there) in pairs)
    assert not (tmp_path / "out.partial").exists()


class Counted(Progress):
    """Progress that counts the optimizer steps."""

    steps = 0

    def track(
        self, items: Iterable[Any], label: str = "", total: int | None = None
    ) -> Iterator[Any]:
        for item in items:
            self.steps += label == "distillation"
            yield item
