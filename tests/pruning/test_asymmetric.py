"""Updates that aim at the dense model's outputs, and masks of all matrices updated in order."""

from pathlib import Path

import pytest
import torch
from transformers import PreTrainedModel
from transformers.models.auto.configuration_auto import CONFIG_MAPPING
from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING

from pruner_zero.calibration.walk import Walk
from pruner_zero.choices import Mode
from pruner_zero.errors import PrunerZeroError
from pruner_zero.models.language_model import LanguageModel
from pruner_zero.models.structure import find_blocks, find_matrices
from pruner_zero.offload.model import load_offloaded
from pruner_zero.pruning.matrix import total_sparsity
from pruner_zero.pruning.notation import parse_recipe
from pruner_zero.pruning.runner import run_recipe
from pruner_zero.text.windows import Windows
from tests.pruning.conftest import OpenStore, language_model
from tests.pruning.plain import inputs, places
from tests.tiny import tiny_tokenizer
from tests.tiny_models import VOCABULARY


@pytest.mark.parametrize("update", ["exact", "refine+exact", "obs"])
@pytest.mark.parametrize("architecture", ["llama", "gpt2", "mixtral", "gemma3"])
def test_it_keeps_the_zeros_and_stays_finite_on_every_architecture(
    architecture: str, update: str, windows: Windows, new_store: OpenStore
) -> None:
    model = language_model(architecture, blocks=3)
    method = parse_recipe(f"wanda+asymmetric+{update}", sparsity=0.5)
    records = run_recipe(model, windows, method, new_store(model)).records
    assert total_sparsity(records) == pytest.approx(0.5, abs=0.01)
    assert model.model(windows.tokens).logits.isfinite().all()


def test_the_first_block_has_nothing_to_make_up_for(windows: Windows, new_store: OpenStore) -> None:
    weights = {}
    for text in ("wanda+exact", "wanda+asymmetric+exact"):
        model = language_model("llama")
        run_recipe(model, windows, parse_recipe(text, sparsity=0.5), new_store(model))
        weights[text] = {matrix.name: matrix.weight for matrix in find_matrices(model.model)}
    for name, weight in weights["wanda+exact"].items():
        asymmetric = weights["wanda+asymmetric+exact"][name]
        if ".0." in name:
            torch.testing.assert_close(asymmetric, weight, rtol=1e-3, atol=1e-3)
        else:
            assert not torch.allclose(asymmetric, weight, rtol=1e-3, atol=1e-3)


def test_the_weights_solve_the_problem_that_was_set(windows: Windows, new_store: OpenStore) -> None:
    """Row by row in the second block: least squares on the inputs that the pruned model gives."""
    dense, model = language_model("llama"), language_model("llama")
    run_recipe(
        model, windows, parse_recipe("wanda+asymmetric+exact", sparsity=0.5), new_store(model)
    )
    # The inputs of the second block's first matrices do not depend on the block itself.
    name = next(place.name for place in places(model.model) if place.block == 1)
    incoming = inputs(model.model, windows.tokens, 1)[name].double()
    aimed = inputs(dense.model, windows.tokens, 1)[name].double()
    matrix = next(candidate for candidate in find_matrices(model.model) if candidate.name == name)
    before = next(candidate for candidate in find_matrices(dense.model) if candidate.name == name)
    # A quarter of the way from what the dense weights give here to the dense model's output.
    row, target = matrix.weight[0].double(), (aimed + 3 * incoming) / 4 @ before.weight[0].double()
    support = row != 0
    gram = incoming.T @ incoming
    shrunk = gram.diagonal() * 2 * incoming.shape[1] / incoming.shape[0]
    added = (0.01 * gram.diagonal().mean() + shrunk)[support]
    damped = gram[support][:, support] + added.diag()
    right = incoming[:, support].T @ target + added * before.weight[0].double()[support]
    expected = torch.linalg.solve(damped, right)
    torch.testing.assert_close(row[support], expected, rtol=0.02, atol=0.02)


def test_swaps_aim_at_the_dense_outputs_too_and_leave_the_weights_that_stay(
    windows: Windows, new_store: OpenStore
) -> None:
    dense, model, plain = (language_model("llama") for _ in range(3))
    method = parse_recipe("wanda+refine+asymmetric", sparsity=0.5)
    run_recipe(model, windows, method, new_store(model))
    run_recipe(plain, windows, parse_recipe("wanda+refine", sparsity=0.5), new_store(plain))
    for place, before in zip(places(model.model), places(dense.model), strict=True):
        kept = place.weight != 0
        assert torch.equal(place.weight, before.weight * kept)
        assert (kept.sum(1) == kept.shape[1] // 2).all()
    name = next(place.name for place in places(model.model) if place.block == 1)
    weight = next(place.weight for place in places(dense.model) if place.name == name)
    incoming, aimed = (inputs(source.model, windows.tokens, 1)[name] for source in (model, dense))
    target = weight.double() @ ((aimed.double() + 3 * incoming.double()) / 4).T

    def apart(masked: LanguageModel) -> float:
        pruned = next(place.weight for place in places(masked.model) if place.name == name)
        return float((target - pruned.double() @ incoming.double().T).square().sum())

    # The first block is the same for both, so the inputs are too.
    assert apart(model) < apart(plain)


def test_a_mask_over_all_matrices_can_be_updated_block_by_block(
    windows: Windows, new_store: OpenStore
) -> None:
    kept = {}
    modes: tuple[Mode, ...] = ("one-shot", "sequential")
    for mode in modes:
        model = language_model("llama")
        method = parse_recipe("W * G@global+exact", sparsity=0.5)
        run_recipe(model, windows, method, new_store(model), mode=mode)
        kept[mode] = [matrix.weight for matrix in find_matrices(model.model)]
    for one_shot, sequential in zip(kept["one-shot"], kept["sequential"], strict=True):
        assert torch.equal(one_shot == 0, sequential == 0)
    assert not torch.equal(kept["one-shot"][-1], kept["sequential"][-1])


def test_impossible_combinations_are_refused() -> None:
    with pytest.raises(PrunerZeroError, match=r"add \+obs, \+exact or \+refine"):
        parse_recipe("wanda+asymmetric", sparsity=0.5)
    method = parse_recipe("wanda+asymmetric+exact", sparsity=0.5)
    with pytest.raises(PrunerZeroError, match="--mode sequential"):
        method.mode("one-shot")
    assert parse_recipe("W@global+asymmetric+obs", sparsity=0.5).mode("auto") == "sequential"


def sharing_model() -> PreTrainedModel:
    """A model whose last two blocks take keys and values of earlier blocks."""
    config = CONFIG_MAPPING["gemma4_text"](
        vocab_size=VOCABULARY,
        vocab_size_per_layer_input=VOCABULARY,
        hidden_size=32,
        hidden_size_per_layer_input=8,
        intermediate_size=48,
        num_hidden_layers=6,
        num_attention_heads=4,
        num_key_value_heads=2,
        num_global_key_value_heads=2,
        head_dim=8,
        global_head_dim=8,
        num_kv_shared_layers=2,
        layer_types=["sliding_attention", "full_attention"] * 3,
        max_position_embeddings=64,
        pad_token_id=None,
    )
    torch.manual_seed(0)
    model: PreTrainedModel = MODEL_FOR_CAUSAL_LM_MAPPING[type(config)](config)
    return model.eval()


@torch.no_grad()
def test_the_aim_is_the_dense_model_where_blocks_share_keys_and_values(windows: Windows) -> None:
    """The pruned blocks must not give their keys and values to the blocks of the dense model."""
    model, dense = sharing_model(), sharing_model()
    expected = record_outputs(dense, windows.tokens)
    language_model = LanguageModel(model, tiny_tokenizer(), "tiny")
    beside = Walk(language_model, windows.tokens)
    walk = Walk(language_model, windows.tokens, dense=beside)
    matrices = find_matrices(model)
    for index, block in enumerate(find_blocks(model)):
        of_block = [matrix for matrix in matrices if matrix.block == index]
        walk.collect(block, index, of_block, {"gram"})
        torch.testing.assert_close(torch.cat([*beside.hidden]), expected[index])
        for matrix in of_block:
            matrix.weight.mul_(0.5)
        walk.advance(block, index)


@pytest.mark.parametrize("architecture", ["mixtral", "qwen3_moe", "gpt_oss"])
@torch.no_grad()
def test_dense_outputs_do_not_depend_on_what_is_observed(architecture: str) -> None:
    """A resumed run does not observe the blocks that were finished before."""
    model = language_model(architecture)
    tokens = torch.randint(VOCABULARY, (4, 64), generator=torch.Generator().manual_seed(0))
    last = len(find_blocks(model.model)) - 1
    block = find_blocks(model.model)[last]
    matrices = [matrix for matrix in find_matrices(model.model) if matrix.block == last]
    outputs = []
    for observed in (matrices, matrices[:1], []):
        beside = Walk(model, tokens)
        Walk(model, tokens, dense=beside).collect(block, last, observed, {"gram"})
        outputs.append(torch.cat([*beside.hidden]))
    assert torch.equal(outputs[0], outputs[1])
    assert torch.equal(outputs[0], outputs[2])


def record_outputs(model: PreTrainedModel, tokens: torch.Tensor) -> list[torch.Tensor]:
    """The outputs of every block (windows, tokens, width), of a whole forward pass."""
    outputs: list[torch.Tensor] = []

    def note(_block: object, _inputs: object, output: object) -> None:
        outputs.append(output[0] if isinstance(output, tuple) else output)  # type: ignore[arg-type]

    hooks = [block.register_forward_hook(note) for block in find_blocks(model)]
    model(tokens, use_cache=False)
    for hook in hooks:
        hook.remove()
    return outputs


def test_offloaded_blocks_that_share_keys_and_values_are_refused(
    windows: Windows, tmp_path: Path
) -> None:
    """What a block passes on beside its output is in no file to go on from."""
    sharing_model().save_pretrained(tmp_path)
    tiny_tokenizer().save_pretrained(tmp_path)
    with pytest.raises(PrunerZeroError, match="more than their output: leave out --offload"):
        load_offloaded(tmp_path).block_calls(windows.tokens)
