"""The steps around the masks: what an interrupted distillation leaves, and how it goes on."""

from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import pytest

from pruner_zero import prune
from pruner_zero.progress import Progress, reported_to
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
    monkeypatch.setattr("pruner_zero.recovery.target_training.CHECKPOINT_SECONDS", 0.0)
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
