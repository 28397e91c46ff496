"""Shares of sparsity for each matrix, worked out and obeyed by the whole pipeline."""

import json
import math
from pathlib import Path

import pytest
import torch

from pruner_zero.calibration import calibrate
from pruner_zero.errors import PrunerZeroError
from pruner_zero.models import find_matrices
from pruner_zero.pruning import Mode, parse_method, prune_model, total_sparsity
from pruner_zero.sparsity.layer_error import output_sensitivity, pruning_cost, row_errors
from pruner_zero.text import Windows
from tests.pruning.conftest import OpenStore, language_model

RULES = ("owl", "error")


@pytest.mark.parametrize("architecture", ["llama", "gpt2", "mixtral"])
@pytest.mark.parametrize("mode", ["one-shot", "sequential"])
def test_every_rule_prunes_the_same_total_in_other_places(
    architecture: str, mode: Mode, windows: Windows, new_store: OpenStore
) -> None:
    for rule in RULES:
        model = language_model(architecture)
        method = parse_method(f"wanda@matrix@{rule}", sparsity=0.5)
        records = prune_model(model, windows, method, new_store(model), mode=mode)
        assert total_sparsity(records) == pytest.approx(0.5, abs=1e-4)
        assert len({round(record.zeros / math.prod(record.shape), 3) for record in records}) > 1


@pytest.mark.parametrize("rule", ["owl", "error", "file"])
@pytest.mark.parametrize("metric", ["magnitude", "wanda", "pruner-zero", "sparsegpt"])
def test_each_rule_collects_what_it_looks_at(
    rule: str, metric: str, windows: Windows, new_store: OpenStore, tmp_path: Path
) -> None:
    """Block after block, where the dense model gives only the statistics of the rule."""
    model = language_model("llama")
    if rule == "file":
        names = [matrix.name for matrix in find_matrices(model.model)]
        (tmp_path / "file").write_text(json.dumps({"sparsity": dict.fromkeys(names, 0.5)}))
        rule = str(tmp_path / "file")
    method = parse_method(f"{metric}@matrix", sparsity=0.5, allocation=rule)
    records = prune_model(model, windows, method, new_store(model), mode="sequential")
    assert total_sparsity(records) == pytest.approx(0.5, abs=1e-4)


def test_rows_are_pruned_alike_inside_a_matrix(windows: Windows, new_store: OpenStore) -> None:
    model = language_model("llama")
    method = parse_method("wanda@owl", sparsity=0.6)
    records = prune_model(model, windows, method, new_store(model), mode="one-shot")
    for matrix in find_matrices(model.model):
        assert len(set((matrix.weight == 0).sum(1).tolist())) == 1
    smallest = min(record.shape[0] for record in records)
    wanted = 0.6 * sum(math.prod(record.shape) for record in records)
    assert wanted - 4 * smallest < sum(record.zeros for record in records) <= wanted


def test_by_error_costs_less_than_uniform(windows: Windows, new_store: OpenStore) -> None:
    dense = language_model("llama")
    store = new_store(dense)
    calibrate(dense, windows, ("G", "X", "gram"), store)
    costs = {}
    for text in ("wanda@matrix", "wanda@matrix@error"):
        model = language_model("llama")
        prune_model(model, windows, parse_method(text, sparsity=0.5), store, mode="one-shot")
        pairs = zip(find_matrices(dense.model), find_matrices(model.model), strict=True)
        costs[text] = sum(
            pruning_cost(
                row_errors(before.weight - after.weight, gram),
                row_errors(before.weight, gram),
                output_sensitivity(store.read("G", before.block)[before.name], gram),
            )
            for before, after in pairs
            for gram in [store.read("gram", before.block)[before.name]]
        )
    assert 0 < costs["wanda@matrix@error"] < costs["wanda@matrix"]


def test_a_file_says_how_much_each_matrix_loses(
    windows: Windows, new_store: OpenStore, tmp_path: Path
) -> None:
    model = language_model("llama")
    matrices = find_matrices(model.model)
    sizes = {matrix.name: matrix.weight.numel() for matrix in matrices}
    first = {matrix.name for matrix in matrices if matrix.block == 0}
    inside = sum(size for name, size in sizes.items() if name in first)
    rest = (0.5 * sum(sizes.values()) - 0.25 * inside) / (sum(sizes.values()) - inside)
    shares = {name: 0.25 if name in first else rest for name in sizes}
    file = tmp_path / "shares.json"
    file.write_text(json.dumps({"sparsity": shares}))
    method = parse_method("magnitude@matrix", sparsity=0.5, allocation=str(file))
    records = prune_model(model, windows, method, new_store(model), mode="one-shot")
    for record in records:
        share = record.zeros / math.prod(record.shape)
        assert share == pytest.approx(shares[record.name], abs=0.01)
    gpt2 = language_model("gpt2")
    with pytest.raises(PrunerZeroError, match="which is no matrix to prune"):
        prune_model(gpt2, windows, method, new_store(gpt2), mode="one-shot")


def test_an_update_follows_the_shares(windows: Windows, new_store: OpenStore) -> None:
    dense, model = language_model("llama"), language_model("llama")
    method = parse_method("wanda@owl+exact", sparsity=0.5)
    records = prune_model(model, windows, method, new_store(model))
    assert total_sparsity(records) == pytest.approx(0.5, abs=0.01)
    changed = [
        not torch.equal(matrix.weight[matrix.weight != 0], before.weight[matrix.weight != 0])
        for matrix, before in zip(
            find_matrices(model.model), find_matrices(dense.model), strict=True
        )
    ]
    assert all(changed)
