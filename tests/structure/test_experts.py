"""Whole experts: those of the lowest score go, and the mixture that is left loads anywhere."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn.functional import silu
from transformers import PreTrainedModel

from pruner_zero.errors import PrunerZeroError
from pruner_zero.measuring.comparing import compare
from pruner_zero.models.language_model import LanguageModel
from pruner_zero.models.matrices import find_blocks, find_matrices
from pruner_zero.pruning.prune import prune
from pruner_zero.pruning.prune_result import PruneResult
from pruner_zero.pruning.runner import Pruned
from pruner_zero.report.page import report
from pruner_zero.structure.experts import Experts, find_mixtures
from tests.conftest import save_tiny
from tests.processes import Forked
from tests.pruning.conftest import Prune, language_model, recipe_of
from tests.pruning.test_resume import contents, stop_in_the_middle
from tests.structure.statistics import statistic
from tests.structure.test_couplings import logits
from tests.structure.test_mixtures import SUPPORTED, never_chosen
from tests.tiny import tiny_tokenizer
from tests.tiny_models import EXPERTS, tiny_model, tiny_windows, windows_of

SMALL: dict[str, Any] = {"structure": "experts", "sparsity": 0.25, "windows": 3, "seqlen": 24}
KEPT = 6


def pruned(model: Any, text: str, **settings: Any) -> PruneResult:
    tokenizer = tiny_tokenizer() if isinstance(model, PreTrainedModel) else None
    return prune(model, tokenizer=tokenizer, calibration=[text], **{**SMALL, **settings})


def cut_of(result: PruneResult | Pruned) -> Experts:
    assert isinstance(result.recipe.cut, Experts)
    return result.recipe.cut


def chosen_by(text: str, model: LanguageModel, pruned_by: Prune) -> Experts:
    """The cut of a recipe after pruning by it."""
    return cut_of(pruned_by(model, recipe_of(text).fitted(model)))


def plain_scores(architecture: str, tokens: Tensor) -> dict[int, list[float | None]]:
    """REAP's scores token by token, with the router and the experts written out."""
    model = tiny_model(architecture)
    inputs: dict[int, list[Tensor]] = {}
    for index, block in enumerate(find_blocks(model)):
        mlp = block.get_submodule("mlp")
        if hasattr(mlp, "experts"):
            kept = inputs.setdefault(index, [])
            mlp.register_forward_pre_hook(lambda _, arguments, kept=kept: kept.append(arguments[0]))
    with torch.no_grad():
        model(tokens)
    scores: dict[int, list[float | None]] = {}
    for index, states in inputs.items():
        mlp = find_blocks(model)[index].get_submodule("mlp")
        router = mlp.get_submodule("gate").get_parameter("weight").detach()
        experts = {name: p.detach() for name, p in mlp.get_submodule("experts").named_parameters()}
        contributions: list[list[float]] = [[] for _ in range(EXPERTS)]
        for x in torch.cat(states).flatten(0, 1):
            weights, chosen = torch.softmax(router @ x, 0).topk(2)
            for weight, expert in zip(weights / weights.sum(), chosen.tolist(), strict=True):
                gate, up = (experts["gate_up_proj"][expert] @ x).chunk(2)
                output = experts["down_proj"][expert] @ (silu(gate) * up)
                contributions[expert].append(float(weight * output.norm()))
        scores[index] = [
            sum(several) / len(several) if several else None for several in contributions
        ]
    return scores


@pytest.mark.parametrize("tokens", [tiny_windows(), tiny_windows(1, 2)], ids=["many", "two"])
@pytest.mark.parametrize("architecture", ["mixtral", "qwen3_moe"])
def test_the_score_is_the_mean_of_router_weight_times_norm(
    architecture: str, tokens: Tensor
) -> None:
    model, expected = language_model(architecture), plain_scores(architecture, tokens)
    fitted = Experts(0.25).fit(model)
    scores = fitted.decide(model, windows_of(tokens), statistic(model, tokens, "reap")).scores
    assert scores.keys() == expected.keys()
    for block, block_scores in scores.items():
        for score, wanted in zip(block_scores, expected[block], strict=True):
            assert score == (None if wanted is None else pytest.approx(wanted, rel=1e-5))


def test_experts_that_no_token_reaches_go_first_and_then_the_lowest_scores() -> None:
    fitted = Experts(0.5).fit(language_model("qwen3_moe"))
    scores: dict[int, list[float | None]] = {1: [0.3, None, 0.5, 0.1, 0.1, 0.2, -4.0, 0.4]}
    chosen = Experts(0.5, mixtures=fitted.mixtures, kept=fitted.kept, scores=scores)
    assert chosen.stay == {1: [0, 2, 5, 7]}
    one_less = Experts(0.5, mixtures=fitted.mixtures, kept=5, scores=scores)
    assert one_less.stay == {1: [0, 2, 4, 5, 7]}


@pytest.mark.parametrize(
    ("architecture", "metric"),
    [*((architecture, None) for architecture in SUPPORTED), ("mixtral", "wanda"),
     ("qwen3_moe", "magnitude"), ("gpt_oss", "gblm")],
)  # fmt: skip
def test_the_smaller_model_computes_as_if_removed_experts_were_never_chosen(
    architecture: str, metric: str | None, prose: str
) -> None:
    model, dense = (tiny_model(architecture) for _ in range(2))
    result = pruned(model, prose, metric=metric)
    cut = cut_of(result)
    assert {len(experts) for experts in cut.stay.values()} == {KEPT}
    with never_chosen(dense, cut.stay):
        torch.testing.assert_close(logits(model), logits(dense), atol=1e-5, rtol=1e-5)
    assert result.sparsity == 0.25
    assert result.parameters == (dense.num_parameters(), model.num_parameters())
    assert find_mixtures(model).count == KEPT


def test_a_metric_adds_up_the_squared_scores_of_the_matrices_that_give_the_outputs(
    pruned_by: Prune,
) -> None:
    model, dense = language_model("mixtral"), language_model("mixtral")
    chosen = chosen_by("magnitude@experts=0.25", dense, pruned_by)
    for index, block in enumerate(find_blocks(model.model)):
        down = block.get_submodule("mlp.experts").get_parameter("down_proj").detach()
        assert chosen.scores[index] == pytest.approx(down.square().sum((1, 2)).tolist(), rel=1e-5)


@pytest.mark.parametrize(("share", "gone"), [(0.999, 1), (0.7, 6)])
def test_the_fewest_experts_that_reach_the_parameters_are_removed(
    share: float, gone: int, prose: str
) -> None:
    model = tiny_model("qwen3_moe")
    dense = model.num_parameters()
    expert = 3 * 32 * 24 + 32
    result = pruned(model, prose, sparsity=None, parameters=share)
    assert result.parameters == (dense, dense - gone * expert)
    assert dense - gone * expert <= share * dense < dense - (gone - 1) * expert


@pytest.mark.parametrize("settings", [{}, {"distill": 2}, {"metric": "wanda"}], ids=str)
def test_the_record_and_the_card_name_the_experts_that_stay(
    settings: dict[str, Any], prose: str, tmp_path: Path
) -> None:
    result = pruned(tiny_model("qwen3_moe"), prose, output=tmp_path / "out", **settings)
    before, after = result.parameters
    record = json.loads((tmp_path / "out/pruning.json").read_text())
    assert record["pattern"] == "25% of the experts of every block"
    scores = record["expert_scores"]["1"]
    assert record["experts"] == {"1": sorted(sorted(range(EXPERTS), key=scores.__getitem__)[2:])}
    removed = [entry["name"] for entry in record["matrices"] if entry["sparsity"] == 1]
    assert len(removed) == 4
    card = (tmp_path / "out/README.md").read_text()
    assert f"It has {after:,} of {before:,} parameters" in card
    if "metric" in settings:
        assert (record["expression"], result.chosen_by) == ("W * X", "W * X")
        report([tmp_path / "out"], tmp_path / "report.html")
        return
    assert record["expression"] is None
    assert result.caption().endswith("parameters are left, by REAP")
    assert "by REAP, the mean over an expert's tokens of router weight times norm of" in card
    assert not (tmp_path / "out/metric.json").exists()
    page = report([tmp_path / "out"], tmp_path / "report.html").read_text()
    assert "of the experts of every block, by REAP, the mean over" in page


def test_compare_measures_the_smaller_mixture_and_puts_the_dense_one_back(prose: str) -> None:
    options: dict[str, Any] = {"windows": 3, "seqlen": 24}
    model, text = tiny_model("mixtral"), [prose]
    dense = logits(model)
    table = compare(
        model,
        "dense,reap@experts=0.25,wanda@experts=0.25",
        tokenizer=tiny_tokenizer(),
        calibration=text,
        text=text,
        **options,
    )
    assert torch.equal(logits(model), dense)
    rows = {row["method"]: row for row in table.rows}
    assert rows["reap@experts=0.25"]["expression"] is None
    assert rows["wanda@experts=0.25"]["expression"] == "W * X"
    result = pruned(model, prose)
    smaller = compare(
        model, "dense", tokenizer=tiny_tokenizer(), calibration=text, text=text, **options
    )
    [left], measured = smaller.rows, rows["reap@experts=0.25"]
    assert measured["perplexity"] == pytest.approx(left["perplexity"], rel=1e-5)
    assert measured["perplexity"] != pytest.approx(rows["dense"]["perplexity"], rel=1e-4)
    assert (measured["parameters"], measured["bytes"]) == (left["parameters"], left["bytes"])
    assert measured["parameters"] == result.parameters[1]


@pytest.mark.fault("SIGKILL after each block, during the final save, and while a file is written")
def test_a_kill_changes_no_byte(text_file: Path, tmp_path: Path) -> None:
    dense = save_tiny(tmp_path / "dense", "mixtral", blocks=12)
    options = ["--structure", "experts", "--sparsity", "0.25", "--calibration", text_file]
    command = ["prune", dense, *options, "--windows", 3, "--seqlen", 24, "-o"]
    for name in ("whole", "killed"):
        (tmp_path / name).mkdir()
    killed = [*command, tmp_path / "killed/out"]
    stop_in_the_middle(killed, tmp_path / "killed")
    assert not (tmp_path / "killed/out").exists()
    for arguments in (killed, [*command, tmp_path / "whole/out"]):
        assert Forked(*arguments, log=tmp_path / "log").end() == 0
    assert contents(tmp_path / "killed/out") == contents(tmp_path / "whole/out")


def test_experts_whose_outputs_overflow_are_not_scored(prose: str) -> None:
    model = tiny_model("mixtral")
    with torch.no_grad():
        for matrix in find_matrices(model, ["*down_proj*"]):
            matrix.parameter.fill_(3e38)
    with pytest.raises(PrunerZeroError, match="experts of block 0 cannot be scored"):
        pruned(model, prose)
