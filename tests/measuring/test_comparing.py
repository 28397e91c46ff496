"""One table: every method from the same dense weights and statistics, measured alike."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch

from pruner_zero import Metric, PrunerZeroError, compare, evaluate, prune, recover
from pruner_zero.models.language_model import LanguageModel
from pruner_zero.models.matrices import find_matrices
from pruner_zero.progress import reported_to
from pruner_zero.settings.compare_settings import CLASSICS
from tests.tiny import Notes, tiny_tokenizer
from tests.tiny_models import tiny_model

SIZES: dict[str, Any] = {"windows": 3, "seqlen": 24, "windows_eval": 3}
KEYS = {"method", "perplexity", "sparsity", "seconds", "peak_rss_bytes"}


@pytest.fixture
def mine(llama_folder: Path) -> LanguageModel:
    return LanguageModel(tiny_model("llama"), tiny_tokenizer(), "mine")


@pytest.fixture
def texts(prose: str) -> dict[str, Any]:
    half = len(prose) // 2
    return {"calibration": [prose[:half]], "text": [prose[half:]]}


def test_the_classics_in_one_table(
    mine: LanguageModel, texts: dict[str, Any], tmp_path: Path
) -> None:
    file = tmp_path / "table.json"
    table = compare(mine, sparsity=0.5, output=file, **texts, **SIZES)
    assert [row["method"] for row in table.rows] == CLASSICS.split(",")
    for row in table.rows:
        assert row.keys() >= KEYS
        assert row["perplexity"] > 1
        assert row["sparsity"] == (0 if row["method"] == "dense" else 0.5)
        assert row["seconds"] >= 0
        assert row["peak_rss_bytes"] > 0
        assert "error" not in row
    assert json.loads(file.read_text()) == table.to_json()
    origin = table.provenance
    assert origin["settings"]["sparsity"] == 0.5
    assert origin["settings"]["methods"] == CLASSICS
    assert origin["calibration"]["windows"] == 3
    assert origin["evaluation"]["tokens"] == 72
    assert origin["evaluation"]["selection"] == "consecutive"
    assert origin["calibration"]["text_sha256"] != origin["evaluation"]["text_sha256"]
    assert origin["torch"] == torch.__version__
    assert repr(table).startswith("perplexity per token on 3 windows of 24 tokens of ")
    assert list(table.to_pandas()["method"]) == CLASSICS.split(",")


@pytest.mark.parametrize(
    ("method", "options"),
    [("default", {}), ("wanda+distill=2", {"metric": "wanda", "distill": 2})],
)
def test_a_distilled_row_is_what_prune_gives(
    mine: LanguageModel, texts: dict[str, Any], method: str, options: dict[str, Any]
) -> None:
    sizes: dict[str, Any] = {"windows": 3, "seqlen": 24}
    rows = compare(mine, ["wanda", method, "dense"], sparsity=0.5, **texts, **SIZES).rows
    pruned = prune(mine, calibration=texts["calibration"], sparsity=0.5, **sizes, **options)
    loss = evaluate(pruned.language_model, texts["text"], seqlen=24, windows=3).loss
    assert rows[1]["loss"] == pytest.approx(loss, rel=1e-6)
    assert rows[1]["distill"] == options.get("distill", 40)
    assert rows[1]["sparsity"] == 0.5


def test_the_zeros_of_the_dense_model_are_counted(
    mine: LanguageModel, texts: dict[str, Any]
) -> None:
    matrices = find_matrices(mine.model)
    with torch.no_grad():
        matrices[0].weight[0] = 0
    share = matrices[0].weight.shape[1] / sum(matrix.weight.numel() for matrix in matrices)
    rows = compare(mine, "dense", **texts, **SIZES).rows
    assert rows[0]["sparsity"] == round(share, 6)
    included = compare(mine, "dense", include=[matrices[0].name], **texts, **SIZES).rows
    assert included[0]["sparsity"] == round(1 / matrices[0].weight.shape[0], 6)


@pytest.mark.fault("a weight is NaN or infinite")
def test_a_weight_that_is_nan_is_refused_before_any_row(
    mine: LanguageModel, texts: dict[str, Any]
) -> None:
    with torch.no_grad():
        mine.model.get_input_embeddings().weight[0] = torch.nan
    with pytest.raises(PrunerZeroError, match=r"embed_tokens\.weight has 32 weights that are NaN"):
        compare(mine, "dense", sparsity=0.5, **texts, **SIZES)


def test_the_same_text_for_calibration_and_evaluation_is_noted(
    mine: LanguageModel, texts: dict[str, Any]
) -> None:
    heard, same = Notes(), {**texts, "text": texts["calibration"]}
    with reported_to(heard):
        compare(mine, "dense", sparsity=0.5, **same, **SIZES)
    assert heard.lines[0].startswith("calibration and evaluation use the same text, strings: ")
    other = Notes()
    with reported_to(other):
        compare(mine, "dense", sparsity=0.5, **texts, **SIZES)
    assert other.lines == ["dense …"]


def test_without_any_text_methods_are_measured_on_the_next_text_of_the_model(
    mine: LanguageModel, tmp_path: Path
) -> None:
    options: dict[str, Any] = {"sparsity": 0.5, "calibration": "self", "cache": tmp_path, **SIZES}
    origin = compare(mine, "dense,wanda", text="self", **options).provenance
    assert origin["calibration"]["text"] == "self"
    assert origin["evaluation"]["text"] == "self, from window 3 on"
    assert origin["calibration"]["tokens_sha256"] != origin["evaluation"]["tokens_sha256"]
    alone = compare(mine, "dense", text="self", **{**options, "calibration": None}).provenance
    assert alone["evaluation"]["tokens_sha256"] == origin["calibration"]["tokens_sha256"]


def test_the_model_writes_without_end(mine: LanguageModel) -> None:
    with pytest.raises(PrunerZeroError, match="for --text self: give --windows-eval"):
        compare(mine, "dense", sparsity=0.5, text="self")


@pytest.mark.parametrize("architecture", ["llama", "gpt2", "mixtral"])
def test_the_weights_come_back_bit_for_bit(architecture: str, texts: dict[str, Any]) -> None:
    model = tiny_model(architecture)
    with torch.no_grad():
        next(model.parameters())[0, 0] = -0.0
    before = {name: value.clone() for name, value in model.state_dict().items()}
    compare(
        model,
        "magnitude+distill=1,sparsegpt,wanda@global+obs,W - W",
        sparsity=0.5,
        tokenizer=tiny_tokenizer(),
        **texts,
        **SIZES,
    )
    for name, value in model.state_dict().items():
        assert torch.equal(value, before[name]), name
        assert torch.equal(torch.signbit(value), torch.signbit(before[name])), name


def test_methods_with_scopes_commas_and_trees(
    mine: LanguageModel, texts: dict[str, Any], tmp_path: Path
) -> None:
    tree = tmp_path / "tree.json"
    tree.write_text(json.dumps(Metric.of("pruner-zero").to_tree() | {"scope": "matrix"}))
    table = compare(
        mine,
        f"wanda,wanda@global,max(W, G)@block,min(W,max(G,W)),{tree},{tree}@row",
        sparsity=0.5,
        **texts,
        **SIZES,
    )
    read = [(row["method"], row["scope"], row["expression"]) for row in table.rows]
    assert read == [
        ("wanda", "row", "W * X"),
        ("wanda@global", "global", "W * X"),
        ("max(W, G)@block", "block", "max(W, G)"),
        ("min(W,max(G,W))", "row", "min(W, max(G, W))"),
        (str(tree), "matrix", "abs(W * W) * mms(G)"),
        (f"{tree}@row", "row", "abs(W * W) * mms(G)"),
    ]
    rows = {row["method"]: row["perplexity"] for row in table.rows}
    assert rows["wanda"] != rows["wanda@global"]
    assert rows[str(tree)] != rows[f"{tree}@row"]


def test_blocks_are_chosen_on_text_that_the_model_writes_where_none_is_given(
    texts: dict[str, Any],
) -> None:
    options: dict[str, Any] = {"tokenizer": tiny_tokenizer(), "text": texts["text"], **SIZES}
    table = compare(tiny_model("llama", blocks=4), "block-influence@blocks=0.5", **options)
    assert table.rows[0]["sparsity"] == 0.5
    assert table.provenance["calibration"]["text"] == "self"


@pytest.mark.parametrize(
    ("method", "options", "line"),
    [
        ("wanda@channels", {"pattern": "2:4"}, "does not say which share of its units goes"),
        ("wanda@heads=0.5", {"include": ["*.mlp.*"]}, "leave out --include"),
        ("wanda@heads=0.2", {}, r"^wanda@heads=0\.2: .* choose --sparsity 0\.5"),
        ("wanda", {"pattern": "2:5"}, "is not divisible by 5"),
    ],
)
def test_a_plan_that_does_not_fit_is_refused_before_any_work(
    method: str, options: dict[str, Any], line: str, texts: dict[str, Any], tmp_path: Path
) -> None:
    file = tmp_path / "table.json"
    with pytest.raises(PrunerZeroError, match=line):
        compare(
            tiny_model("llama"),
            ["dense", method],
            tokenizer=tiny_tokenizer(),
            output=file,
            **{**texts, **SIZES, **options},
        )
    assert not file.exists()


def test_a_method_that_fails_says_why_and_the_rest_goes_on(
    mine: LanguageModel, texts: dict[str, Any], tmp_path: Path
) -> None:
    file = tmp_path / "table.json"
    table = compare(
        mine, "W - W,exp(W) - exp(W)@global,wanda", sparsity=0.5, output=file, **texts, **SIZES
    )
    failed, also, good = table.rows
    assert "cannot score model.layers.0.self_attn.q_proj" in failed["error"]
    assert failed["perplexity"] is None
    assert failed["sparsity"] is None
    assert failed.keys() >= KEYS
    assert "cannot score" in also["error"]
    alone = compare(mine, "wanda", sparsity=0.5, **texts, **SIZES).rows[0]
    assert good["perplexity"] == alone["perplexity"]
    assert json.loads(file.read_text())["rows"] == table.rows


def test_unavailable_gradients_fail_only_the_rows_that_need_them(
    texts: dict[str, Any],
) -> None:
    model = tiny_model("llama").to(torch.float16)
    table = compare(model, "gblm,wanda", sparsity=0.5, tokenizer=tiny_tokenizer(), **texts, **SIZES)
    assert "gradients in float16 vanish" in table.rows[0]["error"]
    assert table.rows[1]["perplexity"] > 1


def test_statistics_are_collected_once_for_all(
    mine: LanguageModel, texts: dict[str, Any], tmp_path: Path
) -> None:
    runs = 0

    def count(_module: object, _inputs: object) -> None:
        nonlocal runs
        runs += torch.is_grad_enabled()

    mine.model.register_forward_pre_hook(count)
    options: dict[str, Any] = {"sparsity": 0.5, "cache": tmp_path}
    compare(mine, "gblm,pruner-zero,pruner-zero@global", **options, **texts, **SIZES)
    assert runs == 3
    compare(mine, "W * G,gblm", **options, **texts, **SIZES)
    assert runs == 3


def test_notes_of_unreached_experts_reach_the_row(texts: dict[str, Any]) -> None:
    table = compare(
        tiny_model("mixtral"),
        "wanda",
        sparsity=0.5,
        tokenizer=tiny_tokenizer(),
        windows=1,
        seqlen=2,
        windows_eval=2,
        **texts,
    )
    assert all("pruned by magnitude" in note for note in table.rows[0]["notes"])


def test_a_failed_allocation_ends_the_table_and_is_no_row(
    mine: LanguageModel, texts: dict[str, Any]
) -> None:
    def fail(*_: object) -> None:
        torch.empty(2**50)

    handle = mine.model.model.layers[1].mlp.down_proj.register_forward_pre_hook(fail)
    with pytest.raises(PrunerZeroError, match=r"^out of memory: choose fewer --windows or"):
        compare(mine, "dense,wanda", sparsity=0.5, **texts, **SIZES)
    handle.remove()


def test_the_weights_of_a_model_are_hashed_once(
    mine: LanguageModel, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    hashed: list[LanguageModel] = []
    fingerprint = LanguageModel.fingerprint

    def noted(model: LanguageModel) -> str:
        hashed.append(model)
        return fingerprint(model)

    monkeypatch.setattr(LanguageModel, "fingerprint", noted)
    sizes: dict[str, Any] = {"windows": 2, "seqlen": 16}
    folders = [tmp_path / name for name in ("compare", "prune", "pruned")]
    compare(mine, "wanda", text="self", sparsity=0.5, cache=folders[0], windows_eval=2, **sizes)
    assert hashed == [mine]
    dense = LanguageModel(tiny_model("llama"), tiny_tokenizer(), "dense")
    hashed.clear()
    prune(mine, "wanda", sparsity=0.5, cache=folders[1], **sizes)
    assert hashed == [mine]
    hashed.clear()
    recover(mine, teacher=dense, steps=1, windows=11, seqlen=16)
    assert len(hashed) == 2
    assert {mine, dense} == set(hashed)


def test_each_row_is_what_prune_and_evaluate_give(texts: dict[str, Any]) -> None:
    """Where nothing changes weights on the way: the statistics are those of the dense model.

    The dense model is restored before each row, and at the end with its configuration.
    """
    channels = {"metric": "wanda", "sparsity": 0.34, "structure": "channels", "update": "none"}
    heads = {"metric": "wanda", "sparsity": 0.5, "structure": "heads", "update": "none"}
    methods: dict[str, dict[str, Any]] = {
        "wanda": {"metric": "wanda"},
        "wanda@channels=0.34+none": channels,
        "wanda@channels=0.34+none+distill=2": {**channels, "distill": 2},
        "wanda@heads+none": heads,
        "wanda@heads=0.5+none+distill=2": {**heads, "distill": 2},
        "pruner-zero@global": {"metric": "pruner-zero@global"},
        "wanda@matrix": {"metric": "wanda@matrix"},
        "block-influence@blocks=0.25": {"sparsity": 0.25, "structure": "blocks"},
    }
    model = tiny_model("llama", blocks=4)
    before = {name: value.clone() for name, value in model.state_dict().items()}
    options: dict[str, Any] = {"tokenizer": tiny_tokenizer()}
    dense, *rows = compare(
        model, ["dense", *methods], sparsity=0.5, **options, **texts, **SIZES
    ).rows
    for name, value in model.state_dict().items():
        assert torch.equal(value, before[name]), name
    assert model.config.to_dict() == tiny_model("llama", blocks=4).config.to_dict()
    assert dense["parameters"] == rows[0]["parameters"] == model.num_parameters()
    measured = {"seqlen": 24, "windows": 3, **options}
    assert dense["perplexity"] == evaluate(model, texts["text"], **measured).perplexity
    for row, (name, settings) in zip(rows, methods.items(), strict=True):
        pruned = tiny_model("llama", blocks=4)
        calibration = {"calibration": texts["calibration"], "windows": 3, "seqlen": 24}
        result = prune(pruned, **{"sparsity": 0.5, **calibration, **options, **settings})
        assert row["sparsity"] == round(result.sparsity, 6), name
        assert row["parameters"] == pruned.num_parameters() == result.parameters[1], name
        assert row["bytes"] == 4 * row["parameters"]
        metric = settings.get("metric", "").partition("@")[0]
        assert row["expression"] == (str(Metric.of(metric).expression) if metric else None)
        # The sums of a masked model have more terms, which are zero.
        exact = "@channels" not in name and "@heads" not in name and "@blocks" not in name
        perplexity = evaluate(pruned, texts["text"], **measured).perplexity
        assert row["perplexity"] == pytest.approx(perplexity, rel=0 if exact else 1e-5), name
