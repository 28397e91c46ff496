"""Folders of smaller models load and generate with transformers alone."""

import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path

import torch
from torch import Tensor

from pruner_zero.pruning.prune import prune
from tests.conftest import save_tiny
from tests.structure.test_blocks import DEPTH, SUPPORTED
from tests.structure.test_couplings import logits
from tests.structure.test_mixtures import SUPPORTED as MIXTURES
from tests.tiny_models import tiny_windows

LOADS_ALONE = """
import sys
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

tokens = torch.load("tokens.pt")
for folder in sys.argv[1:]:
    model = AutoModelForCausalLM.from_pretrained(folder, trust_remote_code=True)
    AutoTokenizer.from_pretrained(folder)
    made = [
        model.generate(tokens[:1, :5], max_new_tokens=8, do_sample=False, use_cache=cached)
        for cached in (True, False)
    ]
    assert torch.equal(*made), made
    torch.save(model(tokens).logits, f"{folder}.pt")
assert not [name for name in sys.modules if name.startswith("pruner_zero")]
"""


def check_loads_alone(folder: Path, expected: Mapping[str, Tensor]) -> None:
    """The models in `folder`, by name, load without this package, generate, and give these logits.

    All in one fresh process, since it takes seconds to import transformers.
    """
    torch.save(tiny_windows(), folder / "tokens.pt")
    command = [sys.executable, "-c", LOADS_ALONE, *expected]
    subprocess.run(command, check=True, env={"OMP_NUM_THREADS": "1"}, cwd=folder)
    for name, computed in expected.items():
        loaded = torch.load(folder / f"{name}.pt")
        torch.testing.assert_close(loaded, computed, atol=1e-5, rtol=1e-5, msg=name)


def test_folders_without_blocks_or_experts_load_without_this_package(
    prose: str, tmp_path: Path
) -> None:
    cases = [("blocks", architecture, DEPTH) for architecture in SUPPORTED]
    cases += [("experts", architecture, 2) for architecture in MIXTURES]
    expected = {}
    for structure, architecture, blocks in cases:
        name = f"{structure}-{architecture}"
        dense = save_tiny(tmp_path / "dense" / name, architecture, blocks=blocks)
        result = prune(
            dense,
            structure=structure,
            sparsity=0.34 if structure == "blocks" else 0.25,
            calibration=[prose],
            windows=3,
            seqlen=24,
            output=tmp_path / name,
        )
        expected[name] = logits(result.language_model.model)
    check_loads_alone(tmp_path, expected)
