"""The result folder loads anywhere, describes the run, and has nothing left beside it."""

import json
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM, AutoTokenizer

from pruner_zero.errors import PrunerZeroError
from pruner_zero.files import sha256
from pruner_zero.metric.metric import Metric
from pruner_zero.pruning.notation import parse_recipe
from pruner_zero.pruning.prune import prune
from pruner_zero.pruning.prune_result import PruneResult
from tests.conftest import save_tiny
from tests.pruning.conftest import language_model
from tests.pruning.plain import places
from tests.tiny import tiny_tokenizer

SMALL: dict[str, Any] = {"windows": 3, "seqlen": 24}
HALF: dict[str, Any] = {**SMALL, "sparsity": 0.5}


@pytest.fixture(scope="module")
def pruned(
    llama_folder: Path, text_file: Path, tmp_path_factory: pytest.TempPathFactory
) -> PruneResult:
    output = tmp_path_factory.mktemp("pruned") / "deeper" / "out"
    return prune(
        llama_folder,
        "abs(W * W) * mms(G)@matrix",
        sparsity=0.4,
        calibration=text_file,
        output=output,
        **SMALL,
    )


@pytest.mark.parametrize("umask", [0o022, 0o077])
@pytest.mark.parametrize("offload", [False, True])
def test_every_file_has_the_permissions_of_the_umask(
    umask: int, offload: bool, llama_folder: Path, text_file: Path, tmp_path: Path
) -> None:
    before = os.umask(umask)
    try:
        prune(
            llama_folder,
            "wanda",
            calibration=text_file,
            output=tmp_path / "out",
            offload=offload,
            **HALF,
        )
    finally:
        os.umask(before)
    files = [path for path in (tmp_path / "out").rglob("*") if path.is_file()]
    assert {"config.json", "pruning.json", "timing.json"} <= {path.name for path in files}
    assert any(path.suffix == ".safetensors" for path in files)
    wrong = {
        path.name: oct(path.stat().st_mode)
        for path in files
        if path.stat().st_mode & 0o777 != 0o666 & ~umask
    }
    assert not wrong


def folder_of(result: PruneResult) -> Path:
    assert result.output is not None
    return result.output


def record_of(result: PruneResult) -> Any:
    return json.loads((folder_of(result) / "pruning.json").read_text())


def test_it_shows_a_row_a_matrix(pruned: PruneResult) -> None:
    line, header, *rows = repr(pruned).splitlines()
    assert line.endswith("of the weights of 14 matrices are zero, by abs(W * W) * mms(G)")
    assert header.split() == ["name", "shape", "zeros", "sparsity"]
    assert len(rows) == len(pruned.records) == len(pruned.to_pandas())


def test_it_loads_with_plain_transformers_and_has_exact_zeros(pruned: PruneResult) -> None:
    model = AutoModelForCausalLM.from_pretrained(folder_of(pruned))
    tokenizer = AutoTokenizer.from_pretrained(folder_of(pruned))
    text = "the Ünïcode of it"
    assert tokenizer(text)["input_ids"] == tiny_tokenizer()(text)["input_ids"]
    assert model(torch.tensor([[1, 2, 3]])).logits.isfinite().all()
    for place, record in zip(places(model), pruned.records, strict=True):
        assert place.name == record.name
        zeros = place.weight[place.weight == 0]
        assert len(zeros) == record.zeros == int(place.weight.numel() * 0.4)
        assert not torch.signbit(zeros).any()


def test_the_record_describes_the_run(
    pruned: PruneResult, llama_folder: Path, text_file: Path
) -> None:
    written = record_of(pruned)
    assert written["settings"] == {
        "model": str(llama_folder),
        "metric": "abs(W * W) * mms(G)@matrix",
        "calibration": str(text_file),
        "windows": 3,
        "seqlen": 24,
        "seed": 0,
        "sparsity": 0.4,
        "include": [],
        "exclude": [],
        "dtype": "auto",
        "device": "auto",
        "offload": False,
    }
    assert (written["mode"], written["scope"]) == ("one-shot", "matrix")
    assert written["recipe"] == pruned.recipe.lines()
    assert written["calibration"]["text_sha256"] == sha256(text_file)
    assert written["provenance"]["model_sha256"] == language_model("llama").fingerprint()
    assert written["provenance"]["torch"] == torch.__version__
    assert [entry["sparsity"] for entry in written["matrices"]] == [
        round(record.sparsity, 6) for record in pruned.records
    ]
    assert written["sparsity"] == round(pruned.sparsity, 6)
    parameters = pruned.language_model.model.num_parameters()
    assert written["parameters"] == [parameters, parameters]


def test_the_card_says_that_the_model_wrote_the_text(llama_folder: Path, tmp_path: Path) -> None:
    output = tmp_path / "out"
    prune(llama_folder, calibration="self", output=output, cache=tmp_path, **HALF)
    card = (output / "README.md").read_text()
    written = "3 windows of 24 tokens that the dense model wrote itself, seed 0."
    assert f"Calibrated on {written} The text that the dense model wrote begins `" in card
    record = json.loads((output / "pruning.json").read_text())
    assert record["calibration"].keys() >= {"sample", "scripts", "repeated"}
    assert record["settings"]["calibration"] == record["calibration"]["text"] == "self"


def test_the_metric_reads_back_with_its_scope(pruned: PruneResult) -> None:
    metric = Metric.of(folder_of(pruned) / "metric.json")
    assert metric.expression == Metric.of("pruner-zero").expression
    assert metric.scope == "matrix"
    assert (
        parse_recipe(str(folder_of(pruned) / "metric.json"), sparsity=0.4).to_json()["scope"]
        == "matrix"
    )


def test_the_time_it_took_stands_apart(pruned: PruneResult) -> None:
    timing = json.loads((folder_of(pruned) / "timing.json").read_text())
    assert timing["seconds"] > 0
    assert timing["peak_rss_bytes"] > 0
    assert "seconds" not in record_of(pruned)


def test_nothing_else_is_left(pruned: PruneResult) -> None:
    folder = folder_of(pruned)
    assert os.listdir(folder.parent) == ["out"]
    assert sorted(os.listdir(folder)) == [
        "README.md",
        "config.json",
        "generation_config.json",
        "metric.json",
        "model.safetensors",
        "pruning.json",
        "timing.json",
        "tokenizer.json",
        "tokenizer_config.json",
    ]


def test_the_model_card_describes_the_run(pruned: PruneResult, text_file: Path) -> None:
    card = (folder_of(pruned) / "README.md").read_text()
    assert card.startswith("---\nlibrary_name: transformers\n")
    assert "# llama, pruned to 39.9% zeros" in card
    lines = "".join(f"- {line}\n" for line in pruned.recipe.lines())
    assert f"## What was done\n\n{lines}\nNothing was retrained.\n" in card
    assert "- mask: abs(W * W) * mms(G) (40% per matrix)\n" in lines
    assert "| `mlp.down_proj` | 2 | " in card
    assert f"3 windows of 24 tokens of `{text_file}`" in card
    assert "Remarks" not in card


def test_the_card_and_the_record_name_experts_no_token_reached(
    tmp_path: Path, text_file: Path
) -> None:
    result = prune(
        save_tiny(tmp_path / "moe", "mixtral"),
        "wanda",
        sparsity=0.5,
        calibration=text_file,
        windows=1,
        seqlen=2,
        output=tmp_path / "out",
    )
    card = (tmp_path / "out" / "README.md").read_text()
    silent = [entry for entry in record_of(result)["matrices"] if entry["note"]]
    assert silent
    for entry in silent:
        assert f"- `{entry['name']}`: {entry['note']}" in card
    assert "| `mlp.experts.gate_up_proj[*]` | 16 | 50.00% |" in card
    model = AutoModelForCausalLM.from_pretrained(tmp_path / "out")
    experts = model.model.layers[0].mlp.experts.gate_up_proj
    assert (experts == 0).float().mean() == 0.5


def test_the_card_lists_no_matrix_that_is_left_out(
    tmp_path: Path, llama_folder: Path, text_file: Path
) -> None:
    prune(
        llama_folder,
        "magnitude",
        pattern="2:4",
        calibration=text_file,
        include=["*.mlp.*"],
        output=tmp_path / "out",
        **SMALL,
    )
    card = (tmp_path / "out" / "README.md").read_text()
    assert "- mask: W (2:4)\n" in card
    assert "self_attn" not in card
    assert "scope" not in json.loads((tmp_path / "out" / "metric.json").read_text())


def test_a_hub_name_is_the_base_model_of_the_card(prose: str, tmp_path: Path) -> None:
    model = language_model("llama")
    named = type(model)(model.model, model.tokenizer, "someone/tiny-llama")
    prune(named, "magnitude", calibration=[prose], output=tmp_path / "out", **HALF)
    card = (tmp_path / "out" / "README.md").read_text()
    assert "\nbase_model: someone/tiny-llama\n" in card
    assert "# tiny-llama, pruned to" in card


def test_the_license_of_the_model_goes_with_it(
    prose: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    source, options = save_tiny(tmp_path / "source"), {"calibration": [prose], **SMALL}
    prune(source, "wanda", sparsity=0.5, output=tmp_path / "without", **options)
    assert "license" not in (tmp_path / "without" / "README.md").read_text()
    (source / "LICENSE").write_text("Do as you like.")
    head = "license: other\nlicense_name: mine\n"
    (source / "README.md").write_text(f"---\ntags: [a]\n{head}---\n\nlicense: not this\n")
    prune(source, "wanda", sparsity=0.5, output=tmp_path / "with", **options)
    card = (tmp_path / "with" / "README.md").read_text()
    assert card.startswith(f"---\n{head}library_name: transformers\n")
    assert "not this" not in card
    assert (tmp_path / "with" / "LICENSE").read_text() == "Do as you like."
    # The current folder is not that of a model without a name.
    monkeypatch.chdir(source)
    prune(language_model("llama"), "wanda", sparsity=0.5, output=tmp_path / "memory", **options)
    assert not (tmp_path / "memory" / "LICENSE").exists()
    assert "license" not in (tmp_path / "memory" / "README.md").read_text()


def test_a_model_pruned_in_memory_is_saved_later(
    llama_folder: Path, prose: str, tmp_path: Path
) -> None:
    options: dict[str, Any] = {"calibration": [prose], **HALF}
    result = prune(llama_folder, "wanda", **options)
    assert result.save(tmp_path / "saved") == tmp_path / "saved"
    prune(llama_folder, "wanda", output=tmp_path / "pruned", **options)
    for name in ("model.safetensors", "config.json", "pruning.json", "metric.json", "README.md"):
        saved, pruned = ((tmp_path / folder / name).read_bytes() for folder in ("saved", "pruned"))
        assert saved == pruned, name
    with pytest.raises(PrunerZeroError, match="add --overwrite"):
        result.save(tmp_path / "saved")
    result.save(tmp_path / "saved", overwrite=True)
    with pytest.raises(PrunerZeroError, match="which this command reads"):
        result.save(llama_folder, overwrite=True)


def test_the_card_names_a_model_in_the_current_folder(
    prose: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(save_tiny(tmp_path / "mine"))
    prune(".", "magnitude", calibration=[prose], output=tmp_path / "out", **HALF)
    assert "# mine, pruned to" in (tmp_path / "out" / "README.md").read_text()
    (tmp_path / "link").symlink_to("mine")
    options: dict[str, Any] = {"calibration": [prose], "overwrite": True, **SMALL}
    prune("../link", "magnitude", sparsity=0.5, output=tmp_path / "out", **options)
    assert "# link, pruned to" in (tmp_path / "out" / "README.md").read_text()


def test_gpt2_comes_back_in_its_own_layout(tmp_path: Path, text_file: Path) -> None:
    result = prune(
        save_tiny(tmp_path / "gpt2", "gpt2"),
        "wanda",
        calibration=text_file,
        output=tmp_path / "out",
        **HALF,
    )
    stored = load_file(tmp_path / "out" / "model.safetensors")
    weight = next(tensor for name, tensor in stored.items() if name.endswith("h.0.mlp.c_fc.weight"))
    assert weight.shape == (32, 48)
    assert ((weight == 0).sum(0) == 16).all()
    assert result.sparsity == 0.5


def test_a_full_output_folder_is_refused_and_replaced_by_overwrite(
    tmp_path: Path, llama_folder: Path, text_file: Path
) -> None:
    output = tmp_path / "out"
    output.mkdir()
    options: dict[str, Any] = {"calibration": text_file, "output": output, **HALF}
    prune(llama_folder, "magnitude", **options)
    assert (output / "config.json").exists()
    (output / "mine.txt").write_text("precious")
    with pytest.raises(PrunerZeroError, match="is not empty: choose another folder, or add"):
        prune(llama_folder, "wanda", **options)
    assert (output / "mine.txt").read_text() == "precious"
    with pytest.raises(PrunerZeroError, match=r"mine.txt was not written by this program"):
        prune(llama_folder, "wanda", overwrite=True, **options)
    assert (output / "mine.txt").read_text() == "precious"
    (output / "mine.txt").unlink()
    prune(llama_folder, "wanda", overwrite=True, **options)
    assert json.loads((output / "metric.json").read_text())["name"] == "wanda"
    assert os.listdir(tmp_path) == ["out"]


def test_an_output_that_fills_while_the_model_loads_is_not_replaced(
    tmp_path: Path, llama_folder: Path, prose: str
) -> None:
    output = tmp_path / "out"

    def texts() -> Iterator[str]:
        # Read after the output was found free: another process finishes there meanwhile.
        output.mkdir()
        (output / "theirs.txt").write_text("precious")
        yield prose

    with pytest.raises(PrunerZeroError, match="is not empty"):
        prune(llama_folder, calibration=texts(), output=output, **HALF)
    assert os.listdir(output) == ["theirs.txt"]
    assert os.listdir(tmp_path) == ["out"]


def test_a_model_is_not_replaced_by_its_pruned_self(tmp_path: Path, text_file: Path) -> None:
    dense, pruned = save_tiny(tmp_path / "llama"), tmp_path / "pruned"
    options: dict[str, Any] = {"calibration": text_file, **HALF}
    prune(dense, "wanda", output=pruned, **options)
    before = [file.read_bytes() for file in sorted(pruned.iterdir())]
    for folder in (dense, pruned):
        with pytest.raises(PrunerZeroError, match="which this command reads: choose another"):
            prune(folder, "wanda", output=folder, overwrite=True, **options)
    assert [file.read_bytes() for file in sorted(pruned.iterdir())] == before
    assert sorted(os.listdir(tmp_path)) == ["llama", "pruned"]


def test_a_file_a_mount_point_and_a_folder_below_a_file_are_refused(
    tmp_path: Path, llama_folder: Path, text_file: Path
) -> None:
    (tmp_path / "file").write_text("")
    for output, words in (
        (tmp_path / "file", "is a file"),
        (tmp_path / "file" / "out", "is not a folder"),
        (Path("/proc"), "is a mount point"),
    ):
        with pytest.raises(PrunerZeroError, match=words):
            prune(llama_folder, calibration=text_file, output=output, overwrite=True, **HALF)
    assert os.listdir(tmp_path) == ["file"]


def test_a_run_that_fails_before_its_first_block_leaves_nothing(
    tmp_path: Path, llama_folder: Path, text_file: Path
) -> None:
    options: dict[str, Any] = {"calibration": text_file, "output": tmp_path / "out", **HALF}
    with pytest.raises(PrunerZeroError, match="gradients in float16 vanish"):
        prune(llama_folder, "pruner-zero", dtype="float16", **options)
    assert os.listdir(tmp_path) == []
    prune(llama_folder, "pruner-zero", dtype="bfloat16", **options)
    stored = load_file(tmp_path / "out" / "model.safetensors")
    assert {tensor.dtype for tensor in stored.values()} == {torch.bfloat16}
