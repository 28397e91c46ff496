"""What docs/after.md says of adapters: beside the weights they keep zeros, merged they do not."""

import pytest
import torch

from tests.recovery.conftest import pruned_model


def test_an_adapter_of_peft_keeps_the_zeros_until_it_is_merged() -> None:
    peft = pytest.importorskip("peft")
    pruned, zeros = pruned_model()
    name = "model.layers.0.mlp.up_proj"
    config = peft.LoraConfig(r=2, target_modules=[name], init_lora_weights=False)
    adapted = peft.get_peft_model(pruned.model, config)
    layer = adapted.base_model.model.get_submodule(name)
    assert torch.equal(layer.base_layer.weight == 0, zeros[f"{name}.weight"])
    merged = adapted.merge_and_unload()
    assert not (merged.get_submodule(name).weight == 0).any()
