"""`mixed:M`: every group of M keeps its pattern, N is each matrix's own, half of all weights go."""

import json
from collections import Counter
from itertools import product
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from pruner_zero import compare, prune
from pruner_zero.calibration import calibrate
from pruner_zero.models import Matrix, find_matrices
from pruner_zero.pruning import Mode, PruneResult, Selection, parse_method, prune_model
from pruner_zero.text import Windows
from tests.pruning.conftest import OpenStore, language_model

SMALL: dict[str, Any] = {"windows": 3, "seqlen": 24}


def zeros_of_groups(weight: Tensor, m: int) -> set[int]:
    """How many zeros the groups of `m` columns have."""
    return set((weight.reshape(-1, m) == 0).sum(1).tolist())


@pytest.mark.parametrize("text", ["wanda", "gblm+refine+exact", "sparsegpt", "wanda+obs-iter"])
@pytest.mark.parametrize("mode", ["one-shot", "sequential"])
@pytest.mark.parametrize(("architecture", "m"), [("llama", 4), ("gpt2", 8)])
def test_each_matrix_has_one_n_and_half_of_all_weights_are_zero(
    text: str, mode: Mode, architecture: str, m: int, windows: Windows, new_store: OpenStore
) -> None:
    model = language_model(architecture)
    method = parse_method(text, pattern=f"mixed:{m}")
    records = prune_model(model, windows, method, new_store(model), mode=mode)
    chosen = []
    for matrix, record in zip(find_matrices(model.model), records, strict=True):
        assert record.pattern is not None
        n = int(record.pattern.split(":")[0])
        assert record.pattern == f"{n}:{m}"
        assert zeros_of_groups(matrix.weight, m) == {n}
        chosen.append(n)
    assert len(set(chosen)) > 1
    assert 2 * sum(one.zeros for one in records) == sum(
        one.shape[0] * one.shape[1] for one in records
    )


def cost(matrix: Matrix, G: Tensor, gram: Tensor, n: int, m: int) -> float:
    """What magnitude at n:m costs by the formula, all rows, written out."""
    weight = matrix.weight.double()
    order = weight.abs().reshape(-1, m).argsort(dim=1, stable=True)
    removed = torch.zeros_like(weight).reshape(-1, m)
    lowest = order[:, :n]
    removed.scatter_(1, lowest, weight.reshape(-1, m).gather(1, lowest))
    removed = removed.reshape(weight.shape)
    gram = gram.double()
    errors = (removed @ gram * removed).sum(1)
    lost = errors.sum() / (weight @ gram * weight).sum()
    felt = (errors * G.double().square().sum(1) / gram.diagonal().sum()).sum()
    return float(felt / (1 - lost).clamp_min(1e-3) ** 8)


def test_the_choice_costs_least_of_all_on_the_envelopes(
    windows: Windows, new_store: OpenStore
) -> None:
    model, dense = language_model("llama"), language_model("llama")
    store = new_store(model)
    calibrate(model, windows, ("G", "gram"), store)
    few = ("*.0.mlp.*", "*.1.self_attn.[qo]_proj")
    method = parse_method("magnitude", pattern="mixed:4")
    records = prune_model(
        model, windows, method, store, mode="one-shot", selection=Selection(include=few)
    )
    matrices = find_matrices(dense.model, few)
    costs = {
        one.name: [
            cost(
                one,
                store.read("G", one.block)[one.name],
                store.read("gram", one.block)[one.name],
                n,
                4,
            )
            for n in (1, 2, 3)
        ]
        for one in matrices
    }
    # Where a curve bends the wrong way its chord stands for it, as it does in the choice.
    chords = {
        name: [own[0], min(own[1], (own[0] + own[2]) / 2), own[2]] for name, own in costs.items()
    }
    sizes = {one.name: one.weight.numel() for one in matrices}
    best = min(
        sum(chords[name][n - 1] for name, n in zip(sizes, choice, strict=True))
        for choice in product((1, 2, 3), repeat=len(sizes))
        if sum(n * size for n, size in zip(choice, sizes.values(), strict=True))
        == 2 * sum(sizes.values())
    )
    found = {one.name: int(str(one.pattern)[0]) for one in records}
    assert sum(chords[name][n - 1] for name, n in found.items()) == pytest.approx(best, rel=1e-3)


@pytest.fixture(scope="module")
def pruned(
    llama_folder: Path, text_file: Path, tmp_path_factory: pytest.TempPathFactory
) -> PruneResult:
    return prune(
        llama_folder,
        "wanda",
        calibration=text_file,
        pattern="mixed:4",
        output=tmp_path_factory.mktemp("mixed") / "out",
        **SMALL,
    )


def test_the_folder_tells_which_n_each_matrix_has(pruned: PruneResult) -> None:
    assert pruned.output is not None
    told = json.loads((pruned.output / "pruning.json").read_text())
    assert (told["pattern"], told["allocation"], told["sparsity"]) == ("mixed:4", "error", 0.5)
    for one in told["matrices"]:
        assert one["pattern"] == f"{round(4 * one['sparsity'])}:4"
    card = (pruned.output / "README.md").read_text()
    assert "(mixed:4, sequential)" in card
    assert "N of each matrix chosen by the error it causes" in card
    counts = Counter(one["pattern"] for one in told["matrices"])
    listed = ", ".join(f"{name} in {count} matrices" for name, count in sorted(counts.items()))
    assert f"Zeros in each group: {listed}." in card


def test_compare_shows_it_beside_the_same_n_for_all(
    llama_folder: Path, text_file: Path, pruned: PruneResult
) -> None:
    table = compare(
        llama_folder,
        "wanda,wanda@error",
        calibration=text_file,
        text=text_file,
        pattern="2:4",
        windows_eval=2,
        **SMALL,
    )
    plain, mixed = table.rows
    assert (plain["pattern"], mixed["pattern"]) == ("2:4", "mixed:4")
    assert plain["sparsity"] == mixed["sparsity"] == 0.5
    assert plain["perplexity"] != mixed["perplexity"]
    alone = compare(
        llama_folder,
        "wanda",
        calibration=text_file,
        text=text_file,
        pattern="mixed:4",
        windows_eval=2,
        **SMALL,
    )
    assert alone.rows[0]["perplexity"] == mixed["perplexity"]
