"""MLP channels removed by another package, in its environment; units.py measures the folders.

    python benchmarks/peer_structured.py PEER MODEL_FOLDER WINDOWS.npy SHARE OUTPUT

PEER is optipfair (peak-to-peak of the weights), optipfair-data (with activations) or torch-pruning
(the first-order Taylor score of groups, as in LLM-Pruner). WINDOWS.npy holds the calibration tokens
(windows, length). OUTPUT/peer.json records seconds and peak memory.
"""

import json
import resource
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

MULTIPLE = 32


def main() -> None:
    """Remove the channels and save the model."""
    peer, source, file, share, output = sys.argv[1:]
    model: Any = AutoModelForCausalLM.from_pretrained(source, dtype=torch.float32)
    windows = torch.from_numpy(np.load(file)).long()
    start = time.monotonic()
    if peer == "torch-pruning":
        with_torch_pruning(model, windows, float(share))
    else:
        with_optipfair(model, windows if peer == "optipfair-data" else None, float(share))
    seconds = time.monotonic() - start
    Path(output).mkdir(parents=True, exist_ok=True)
    model.save_pretrained(output)
    AutoTokenizer.from_pretrained(source).save_pretrained(output)
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
    record = {"peer": peer, "seconds": round(seconds, 1), "peak_bytes": peak}
    (Path(output) / "peer.json").write_text(json.dumps(record) + "\n")


def with_optipfair(model: Any, windows: torch.Tensor | None, share: float) -> None:
    """Remove neurons by the range of their weights, times the activation norm with `windows`."""
    from optipfair import prune_model

    loader: Any = None
    if windows is not None:
        # optipfair only iterates over its loader: a list of batches will do.
        loader = [
            {"input_ids": window[None], "attention_mask": torch.ones_like(window[None])}
            for window in windows
        ]
    prune_model(
        model,
        pruning_type="MLP_GLU",
        neuron_selection_method="MAW",
        pruning_percentage=100 * share,
        expansion_divisor=MULTIPLE,
        dataloader=loader,
        show_progress=False,
    )


def with_torch_pruning(model: Any, windows: torch.Tensor, share: float) -> None:
    """Remove groups of coupled channels by |weight · gradient|, summed over the group."""
    import torch_pruning as tp

    mlps = [layer.mlp for layer in model.model.layers]
    for window in windows:
        model(window[None], labels=window[None]).loss.backward()
    first = {layer for mlp in mlps for layer in (mlp.gate_proj, mlp.up_proj)}
    leaves = [layer for layer in model.modules() if not list(layer.children())]
    pruner = tp.pruner.BasePruner(
        model,
        example_inputs=windows[:1, :64],
        importance=tp.importance.GroupTaylorImportance(),
        pruning_ratio=0.0,
        # The groups of all other layers take its graph very long, and none of them is pruned.
        ignored_layers=[layer for layer in leaves if layer not in first],
        pruning_ratio_dict={mlp.gate_proj: share for mlp in mlps},
        round_to=MULTIPLE,
        output_transform=lambda output: output.logits,
    )
    pruner.step()
    model.zero_grad()
    model.config.intermediate_size = mlps[0].gate_proj.out_features


if __name__ == "__main__":
    main()
