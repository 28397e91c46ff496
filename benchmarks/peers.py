"""Other packages on given windows, run in an environment of theirs by end_to_end.py and by hand.

    python benchmarks/peers.py PEER MODEL_FOLDER WINDOWS.npy SHARE OUTPUT

PEER is wanda or sparsegpt (weights, by llm-compressor's `oneshot`), or removes channels of the MLP:
optipfair (peak-to-peak of the weights), optipfair-data (with activations) or torch-pruning (the
first-order Taylor score of groups, as in LLM-Pruner). WINDOWS.npy holds the calibration tokens
(windows, length), which `units.py --windows` writes. OUTPUT/peer.json records seconds and peak
memory; `units.py --peers` measures the folders of channels.
"""

import argparse
import json
import resource
import time
from pathlib import Path
from typing import Any

import numpy as np
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

MULTIPLE = 32


def main() -> None:
    """Prune and save the model."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    peers = ("wanda", "sparsegpt", "optipfair", "optipfair-data", "torch-pruning")
    parser.add_argument("peer", choices=peers)
    parser.add_argument("model", type=Path)
    parser.add_argument("windows", type=Path)
    parser.add_argument("share", type=float)
    parser.add_argument("output", type=Path)
    given = parser.parse_args()
    model: Any = AutoModelForCausalLM.from_pretrained(given.model, dtype=torch.float32)
    tokenizer = AutoTokenizer.from_pretrained(given.model)
    windows = torch.from_numpy(np.load(given.windows)).long()
    start = time.monotonic()
    options = {}
    if given.peer in ("wanda", "sparsegpt"):
        with_llm_compressor(model, tokenizer, windows, given.peer, given.share)
        options = {"save_compressed": False}
    elif given.peer == "torch-pruning":
        with_torch_pruning(model, windows, given.share)
    else:
        with_optipfair(model, windows if given.peer == "optipfair-data" else None, given.share)
    seconds = time.monotonic() - start
    given.output.mkdir(parents=True, exist_ok=True)
    model.save_pretrained(given.output, **options)
    tokenizer.save_pretrained(given.output)
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
    record = {"peer": given.peer, "seconds": round(seconds, 1), "peak_bytes": peak}
    (given.output / "peer.json").write_text(json.dumps(record) + "\n")


def with_llm_compressor(
    model: Any, tokenizer: Any, windows: torch.Tensor, method: str, share: float
) -> None:
    """Prune this share of every matrix in the decoder blocks."""
    from datasets import Dataset
    from llmcompressor import oneshot
    from llmcompressor.modifiers.pruning.sparsegpt import SparseGPTModifier
    from llmcompressor.modifiers.pruning.wanda import WandaPruningModifier

    modifier = {"wanda": WandaPruningModifier, "sparsegpt": SparseGPTModifier}[method]
    ones = torch.ones_like(windows)
    oneshot(
        model=model,
        tokenizer=tokenizer,
        dataset=Dataset.from_dict({"input_ids": windows.tolist(), "attention_mask": ones.tolist()}),
        recipe=modifier(
            sparsity=share, mask_structure="0:0", targets=["Linear"], ignore=["re:.*lm_head"]
        ),
        max_seq_length=windows.shape[1],
        num_calibration_samples=len(windows),
        shuffle_calibration_samples=False,
        pipeline="sequential",
    )


def with_optipfair(model: Any, windows: torch.Tensor | None, share: float) -> None:
    """Remove neurons by the range of their weights, times the activation norm with `windows`."""
    from optipfair import run_recipe

    loader: Any = None
    if windows is not None:
        # optipfair only iterates over its loader: a list of batches will do.
        loader = [
            {"input_ids": window[None], "attention_mask": torch.ones_like(window[None])}
            for window in windows
        ]
    run_recipe(
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
