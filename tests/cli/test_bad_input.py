"""Bad input: exit code 2, one line that names the change to make, and no file written."""

import json
import os
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import BertConfig, BertModel, T5Config, T5ForConditionalGeneration

from tests.cli.conftest import Cli
from tests.conftest import save_tiny
from tests.processes import finish, start
from tests.tiny import tiny_tokenizer

HALF = ("--sparsity", "0.5")


@pytest.mark.parametrize(
    ("metric", "words"),
    [
        ("wnada", "unknown metric 'wnada': did you mean 'wanda'?"),
        ("sqrtt(W)", "column 1: unknown operator 'sqrtt': did you mean 'sqrt'?"),
        ("W * Q", "column 5"),
        ("W * ", "column"),
        ("sqr(X)", "gives no value per weight"),
        ("none.json", "none.json: no such file"),
        ("W@glob", "unknown scope 'glob': did you mean 'global'?"),
        ("W - W", "W - W cannot score model.layers.0.self_attn.q_proj"),
    ],
)
def test_invalid_metrics(metric: str, words: str, refused: Callable[..., str]) -> None:
    assert words in refused("--metric", metric, *HALF)


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ((), "give either --sparsity, such as 0.5, or --pattern, such as 2:4"),
        ((*HALF, "--pattern", "2:4"), "give either --sparsity"),
        (("--sparsity", "1"), "sparsity 1.0 is outside [0, 1)"),
        (("--sparsity", "-0.1"), "sparsity -0.1 is outside [0, 1)"),
        (("--sparsity", "50"), "such as 0.5 for 50 %"),
        (("--sparsity", "nan"), "--sparsity is nan: input should be a finite number"),
        (("--sparsity", "half"), "--sparsity"),
        (("--pattern", "4:4"), "choose N and M with 0 < N < M"),
        (("--pattern", "5:4"), "choose N and M with 0 < N < M"),
        (("--pattern", "2-4"), "--pattern is '2-4': write N:M such as 2:4"),
        (("--pattern", "0.5"), "give a share as --sparsity"),
        (("--pattern", "2:4", "--scope", "matrix"), "leave out scope 'matrix'"),
        (
            ("--pattern", "2:5"),
            "input width 32 of model.layers.0.self_attn.q_proj is not divisible",
        ),
        ((*HALF, "--scope", "rows"), "--scope is 'rows': input should be 'row', 'block'"),
        ((*HALF, "--dtype", "float8"), "--dtype is 'float8': input should be 'auto', 'float32'"),
        ((*HALF, "--windows", "0"), "--windows is 0: input should be greater than or equal to 1"),
        ((*HALF, "--seqlen", "1"), "--seqlen is 1: input should be greater than or equal to 2"),
        ((*HALF, "--seed", "-1"), "--seed is -1"),
        (
            (*HALF, "--structure", "experts"),
            "--structure experts cannot remove any of the llama family: its configuration does not",
        ),
        ((*HALF, "--include", "*.mpl.*"), "the pattern '*.mpl.*' matches no matrix"),
        ((*HALF, "--exclude", "*"), "no matrix is left to prune"),
    ],
)
def test_invalid_options(options: tuple[str, ...], words: str, refused: Callable[..., str]) -> None:
    assert words in refused(*options)


@pytest.mark.parametrize(
    "words",
    [
        ("prune", "m", "--sparsity", "50", "-o", "out"),
        ("compare", "m", "--text", "t", "--windows", "0"),
        ("search", "m", "--sparsity", "0.5", "-o", "out"),
        ("recover", "m", "--rank", "4", "-o", "out"),
    ],
    ids=lambda words: words[0],
)
def test_settings_are_checked_before_torch_is_imported(
    words: tuple[str, ...], cli: Cli, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("torch", "pruning", "comparison", "evolution", "recovery"):
        # An import of None raises ImportError.
        monkeypatch.setitem(sys.modules, name if name == "torch" else f"pruner_zero.{name}", None)
    assert cli(*words).error


@pytest.mark.parametrize(
    "verb",
    [
        ("prune", "--calibration", "no-such.txt", *HALF, "-o", "out"),
        ("compare", "--calibration", "no-such.txt", "--text", "no-such.txt", *HALF),
        ("search", "--calibration", "no-such.txt", "--sparsity", "0.5", "-o", "out"),
        ("recover", "--text", "no-such.txt", "-o", "out"),
        ("evaluate", "--text", "no-such.txt"),
        ("evaluate", "--tasks", "no-such-task"),
    ],
    ids=lambda verb: verb[0],
)
@pytest.mark.parametrize("device", ["gpu", "cuda:99", "mps,cpu"])
def test_a_device_that_is_not_there_is_refused_before_all_else(
    verb: tuple[str, ...],
    device: str,
    cli: Cli,
    llama_folder: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.chdir(tmp_path)
    if verb[0] == "search":
        verb = (*verb, "--search-text", "no-such.txt", "--evaluations", "9")
    line = cli(verb[0], llama_folder, *verb[1:], "--device", device).error
    assert line.startswith(f"--device is '{device}', and this machine has ")
    assert line.endswith(
        "cpu: give auto, one of these, or several of cuda with commas between them"
    )
    assert not list(tmp_path.iterdir())


def test_unusable_texts(refused: Callable[..., str], tmp_path: Path) -> None:
    short = tmp_path / "short.txt"
    short.write_text("too short")
    assert "has 9 tokens, fewer than one window of 16" in refused(*HALF, text=short)
    assert "there is no file 'none.txt'" in refused(*HALF, text="none.txt")
    assert "did you mean 'wikitext2'?" in refused(*HALF, text="wikitxt2")


def test_unusable_models(refused: Callable[..., str], tmp_path: Path) -> None:
    sizes = {"num_hidden_layers": 1, "hidden_size": 8, "num_attention_heads": 2}
    BertModel(BertConfig(vocab_size=9, intermediate_size=8, **sizes)).save_pretrained(
        tmp_path / "bert"
    )
    tiny = {"d_model": 8, "d_ff": 8, "num_layers": 1, "num_heads": 2, "d_kv": 4}
    T5ForConditionalGeneration(T5Config(vocab_size=9, **tiny)).save_pretrained(tmp_path / "t5")
    (tmp_path / "empty").mkdir()
    assert "bert is a BertModel, not a causal language model" in refused(
        *HALF, model=tmp_path / "bert"
    )
    assert "not a causal language model" in refused(*HALF, model=tmp_path / "t5")
    assert "has no config.json" in refused(*HALF, model=tmp_path / "empty")
    assert "does not exist" in refused(*HALF, model=tmp_path / "none")
    assert "did you mean 'builtin:smollm2-135m'?" in refused(*HALF, model="builtin:smollm2")


@pytest.mark.fault("a model's weights file truncated, garbled, or lacking a tensor")
def test_a_broken_weights_file(refused: Callable[..., str], tmp_path: Path) -> None:
    folder = save_tiny(tmp_path / "broken")
    weights = folder / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-100])
    assert "broken are damaged" in refused(*HALF, model=folder)
    weights.write_bytes(b"\xff" * 1000)
    assert "broken are damaged" in refused(*HALF, model=folder)


@pytest.mark.fault("a weight is NaN or infinite")
def test_weights_that_are_not_numbers_are_named(
    refused: Callable[..., str], tmp_path: Path
) -> None:
    folder = save_tiny(tmp_path / "nan")
    weights = load_file(folder / "model.safetensors")
    weights["model.layers.1.mlp.up_proj.weight"][3, 4] = torch.nan
    save_file(weights, folder / "model.safetensors", {"format": "pt"})
    line = refused(*HALF, model=folder)
    assert "model.layers.1.mlp.up_proj has 1 weights that are NaN or infinite" in line


def test_occupied_outputs(refused: Callable[..., str], tmp_path: Path) -> None:
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "mine.txt").write_text("precious")
    assert "full is not empty: choose another folder, or add --overwrite" in refused(
        *HALF, "-o", tmp_path / "full"
    )
    mine = tmp_path / "full" / "mine.txt"
    assert "mine.txt is a file" in refused(*HALF, "-o", mine, "--overwrite")
    assert "mine.txt is not a folder" in refused(*HALF, "-o", mine / "out")
    assert mine.read_text() == "precious"


def test_invalid_yaml(refused: Callable[..., str], tmp_path: Path) -> None:
    config = tmp_path / "run.yaml"
    for yaml, words in (
        ("sparsty: 0.5", "no setting 'sparsty': did you mean 'sparsity'?"),
        ("sparsity: half", "--sparsity is 'half': input should be a valid number"),
        ("include: 7", "--include is 7: input should be a list"),
        ("sparsity: [", "run.yaml is not valid YAML"),
        ("[1, 2]", "run.yaml must hold settings"),
        ("windows: true", "windows is true in"),
        ("windows: 2\nwindows: 3", "windows stands twice"),
        ("output: out", "'output' is an option of the command line alone"),
        ("sparsity: .nan", "--sparsity is nan: input should be"),
    ):
        config.write_text(yaml)
        assert words in refused("--config", config)
    assert "none.yaml cannot be read: No such file or directory" in refused(
        "--config", tmp_path / "none.yaml"
    )


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["prun"], "No such command 'prun'"),
        (["prune", "model"], "give the place of the result as --output, or add --dry-run"),
        (["prune", "model", "-o", "out", "--sparsety", "0.5"], "--sparsety"),
        (["prune", "-o", "out", *HALF], "the setting 'model' is missing"),
        (["evaluate"], "the setting 'model' is missing"),
        (["metric", "shwo", "W"], "No such command 'shwo'"),
        (["prune", "model", "another", "-o", "out"], "unexpected extra argument"),
    ],
)
def test_invalid_commands(arguments: list[str], words: str, cli: Cli) -> None:
    assert words in cli(*arguments).error


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (["--windows", "0"], "--windows is 0: input should be greater than or equal to 1"),
        (["--seqlen", "1"], "--seqlen is 1: input should be greater than or equal to 2"),
        (["--seqlen", "9999"], "fewer than one window of 9999"),
        (["--windows", "9999", "--seqlen", "16"], "windows of 16 and not 9999"),
        (["--dtype", "flaot32"], "--dtype is 'flaot32': input should be 'auto', 'float32'"),
    ],
)
def test_evaluate_refuses_invalid_options(
    options: list[str], words: str, cli: Cli, llama_folder: Path, text_file: Path
) -> None:
    assert words in cli("evaluate", llama_folder, "--text", text_file, *options).error


def test_evaluate_needs_a_text_that_exists(cli: Cli, llama_folder: Path, tmp_path: Path) -> None:
    assert "give --text to measure perplexity on" in cli("evaluate", llama_folder).error
    assert "there is no file" in cli("evaluate", llama_folder, "--text", "none.txt").error


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (["--methods", "dense,wnada", *HALF], "did you mean 'wanda'?"),
        (["--methods", "dense,,wanda", *HALF], "an empty name in the list of methods"),
        (["--methods", "wanda@glob", *HALF], "did you mean 'global'?"),
        (["--methods", "dense,wanda"], "give either --sparsity"),
        (["--methods", "wanda", "--pattern", "2:5"], "input width 32 of model.layers.0."),
        (["--windows-eval", "0", *HALF], "--windows-eval is 0"),
        (["--windows-eval", "9999", *HALF], "or a smaller --windows-eval or --seqlen"),
    ],
)
def test_compare_refuses_invalid_options(
    options: list[object], words: str, cli: Cli, llama_folder: Path, text_file: Path, tmp_path: Path
) -> None:
    # Another text than for the calibration, which would be noted.
    other = text_file.with_name("other.txt")
    other.write_text(text_file.read_text()[1:])
    texts = ["--calibration", other, "--text", text_file, "--windows", 2, "--seqlen", 16]
    options = ["-o", tmp_path / "t.json", *options]
    line = cli("compare", llama_folder, *texts, *options).error
    assert words in line
    assert os.listdir(tmp_path) == []


def test_compare_refuses_a_table_it_cannot_write(
    cli: Cli, llama_folder: Path, text_file: Path, tmp_path: Path
) -> None:
    texts = ["--calibration", text_file, "--text", text_file, "--windows", 2, "--seqlen", 16]
    line = cli("compare", llama_folder, *texts, *HALF, "-o", tmp_path).error
    assert "is a folder: name a file" in line


def test_a_hub_name_without_the_hub_names_the_local_alternative(
    text_file: Path, tmp_path: Path
) -> None:
    # No program listens on this port, so that the hub is unreachable on any machine.
    away = {"HF_ENDPOINT": "http://127.0.0.1:9", "HF_HOME": str(tmp_path / "home")}
    arguments = ["-o", tmp_path / "out", *HALF, "--calibration"]
    code, out, err = finish(
        start("prune", "someone/model", *arguments, text_file, environment=away)
    )
    assert (code, out) == (2, "")
    assert err.count("\n") == 1
    assert err.startswith("error: someone/model is no local folder and the Hugging Face hub did")
    assert "give a folder, a .gguf file or builtin:smollm2-135m" in err
    assert not (tmp_path / "out").exists()


@pytest.mark.fault("a tokenizer with more tokens than the model embeds")
def test_a_tokenizer_of_another_model_is_refused(
    refused: Callable[..., str], tmp_path: Path
) -> None:
    folder = save_tiny(tmp_path / "mixed")
    config = json.loads((folder / "config.json").read_text())
    weights = load_file(folder / "model.safetensors")
    for name in ("model.embed_tokens.weight", "lm_head.weight"):
        if name in weights:
            weights[name] = weights[name][:50].clone()
    save_file(weights, folder / "model.safetensors", {"format": "pt"})
    (folder / "config.json").write_text(json.dumps({**config, "vocab_size": 50}))
    tiny_tokenizer().save_pretrained(folder)
    assert "use the tokenizer that belongs to the model" in refused(*HALF, model=folder)
