"""An estimate times the model at hand, changes nothing, and grows with the work."""

from dataclasses import replace
from pathlib import Path

import pytest

from pruner_zero.models.matrices import find_matrices
from pruner_zero.offload.model import load_offloaded
from pruner_zero.pruning import estimate as module
from pruner_zero.pruning.default import default
from pruner_zero.pruning.estimate import Estimate, estimate
from pruner_zero.pruning.prune import plan
from pruner_zero.pruning.recipe import Recipe, Text
from pruner_zero.structure.vocabulary import Vocabulary
from tests.conftest import save_sharded
from tests.pruning.conftest import language_model, recipe_of
from tests.tiny import fingerprint

SMALL = Text(64, seqlen=16)


@pytest.fixture(autouse=True)
def _timed(monkeypatch: pytest.MonkeyPatch) -> None:
    """Tiny models are timed too, by a clock on which every look takes a second."""
    monkeypatch.setattr(module, "_LITTLE", 0)
    ticks = iter(range(10**6))
    monkeypatch.setattr("pruner_zero.pruning.estimate.perf_counter", lambda: float(next(ticks)))


def seconds(recipe: Recipe, *, writes: bool = False) -> float:
    model = language_model("llama")
    made = estimate(model, recipe, [], writes=writes)
    assert made is not None
    return made.seconds


@pytest.mark.parametrize("architecture", ["llama", "gpt2", "mixtral", "gemma3"])
def test_the_model_is_unchanged(architecture: str) -> None:
    model = language_model(architecture)
    before = fingerprint(model.model)
    recipe = replace(default([], 0.5), text=SMALL)
    assert estimate(model, recipe, [], writes=True)
    assert fingerprint(model.model) == before
    assert all(p.grad is None and p.requires_grad for p in model.model.parameters())


def test_a_model_on_disk_stays_there(tmp_path: Path) -> None:
    model = load_offloaded(save_sharded(tmp_path))
    assert estimate(model, replace(default([], 0.5), text=SMALL), [], writes=True)
    assert all(p.isnan().all() for p in model.model.parameters())


def test_every_part_of_a_recipe_takes_time() -> None:
    whole = replace(default([], 0.5), text=SMALL)
    # By a clock of one second for each part: half of the text for blocks, half for distillation.
    assert seconds(whole) > seconds(replace(whole, distill=1)) > 0
    assert seconds(whole) > seconds(replace(whole, reconstruct=1))
    assert seconds(whole, writes=True) > seconds(whole)
    assert seconds(whole) > seconds(replace(whole, masks=whole.entries[1]))
    assert seconds(replace(whole, text=Text(128, 16))) > seconds(whole)
    assert seconds(replace(whole, cut=Vocabulary(0.5))) > seconds(whole)
    assert seconds(replace(recipe_of("magnitude"), text=None)) == 0


def test_wide_memory_is_that_of_the_largest_part() -> None:
    model, plain = language_model("llama"), replace(recipe_of("wanda"), text=SMALL)
    matrices = find_matrices(model.model)

    def memory(recipe: Recipe) -> int:
        made = estimate(model, recipe, matrices, writes=False)
        assert made is not None
        return made.memory

    before = memory(plain)
    assert memory(replace(plain, distill=1)) >= before + 2**28
    numbers = sum(matrix.weight.numel() for matrix in matrices)
    assert memory(replace(recipe_of("W * G"), text=SMALL)) >= before + 4 * numbers


@pytest.mark.parametrize(
    ("took", "words"),
    [(0.2, "about 1 seconds"), (80, "about 80 seconds"), (1000, "about 17 minutes")],
)
def test_minutes_are_rounded(took: float, words: str) -> None:
    assert str(Estimate(took, 3 * 2**29)) == f"{words}, 1.5 GiB"


def test_a_plan_writes_nothing_and_says_what_prune_would_do(
    llama_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PRUNER_ZERO_CACHE", str(tmp_path / "cache"))
    made = plan(llama_folder, sparsity=0.5, windows=4, seqlen=16, output=tmp_path / "out")
    assert made.lines()[0].startswith("about ")
    assert made.lines()[1:] == made.recipe.lines()
    assert made.shapes["mlp.up_proj"] == [(48, 32)] * 2
    assert made.to_json()["matrices"]["mlp.up_proj"] == {"count": 2, "shape": (48, 32)}
    assert not list(tmp_path.iterdir())
