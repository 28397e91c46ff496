"""llm-compressor's `oneshot` on given windows; run by end_to_end.py in that package's environment.

python benchmarks/peer_oneshot.py MODEL WINDOWS.npy METHOD OUTPUT
"""

import sys
from pathlib import Path

import numpy as np
import torch
from datasets import Dataset
from llmcompressor import oneshot
from llmcompressor.modifiers.pruning.sparsegpt import SparseGPTModifier
from llmcompressor.modifiers.pruning.wanda import WandaPruningModifier
from transformers import AutoModelForCausalLM, AutoTokenizer

MODIFIERS = {"wanda": WandaPruningModifier, "sparsegpt": SparseGPTModifier}


def main() -> None:
    """Prune half of every matrix in the decoder blocks and save the model."""
    model_folder, windows_file, method, output = sys.argv[1:]
    windows = np.load(windows_file)
    model = AutoModelForCausalLM.from_pretrained(model_folder, dtype=torch.float32)
    tokenizer = AutoTokenizer.from_pretrained(model_folder)
    data = Dataset.from_dict(
        {"input_ids": windows.tolist(), "attention_mask": np.ones_like(windows).tolist()}
    )
    oneshot(
        model=model,
        tokenizer=tokenizer,
        dataset=data,
        recipe=MODIFIERS[method](
            sparsity=0.5, mask_structure="0:0", targets=["Linear"], ignore=["re:.*lm_head"]
        ),
        max_seq_length=windows.shape[1],
        num_calibration_samples=len(windows),
        shuffle_calibration_samples=False,
        pipeline="sequential",
    )
    Path(output).mkdir(parents=True, exist_ok=True)
    model.save_pretrained(output, save_compressed=False)
    tokenizer.save_pretrained(output)


if __name__ == "__main__":
    main()
