"""What commands print: results on stdout, everything else on stderr, one JSON value on request."""

import json
import os
import pty
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

import pruner_zero
from pruner_zero.metric.expression import TERMINALS
from pruner_zero.metric.metric import NAMED, Metric
from pruner_zero.metric.operators import OPERATORS
from tests.cli.conftest import Cli, Outcome
from tests.processes import finish, start

HALF = ("--sparsity", "0.5")


@pytest.fixture
def texts(text_file: Path) -> list[object]:
    return ["--calibration", text_file, "--windows", 2, "--seqlen", 16]


def one_value(outcome: Outcome) -> Any:
    """Stdout as strict JSON, one line."""

    def refuse(constant: str) -> None:
        raise AssertionError(f"{constant} is not JSON")

    assert outcome.code == 0, outcome
    assert outcome.out.count("\n") == 1
    return json.loads(outcome.out, parse_constant=refuse)


def test_prune_reports_the_pruned_model(
    cli: Cli, llama_folder: Path, texts: list[object], tmp_path: Path
) -> None:
    outcome = cli("prune", llama_folder, *texts, *HALF, "-o", tmp_path / "out")
    assert outcome.code == 0
    assert outcome.out.startswith(f"{tmp_path / 'out'}: 50.00% of the weights of 14 matrices are")
    assert outcome.out.count("\n") == 1


def test_prune_with_json(cli: Cli, llama_folder: Path, texts: list[object], tmp_path: Path) -> None:
    result = one_value(
        cli("prune", llama_folder, *texts, "--pattern", "2:4", "-o", tmp_path / "out", "--json")
    )
    assert result["output"] == str(tmp_path / "out")
    assert result["sparsity"] == 0.5
    assert result["settings"]["pattern"] == "2:4"
    assert result["peak_rss_bytes"] > 0


def test_texts_are_mixed_alike_by_options_and_by_a_file_of_settings(
    cli: Cli, llama_folder: Path, text_file: Path, tmp_path: Path
) -> None:
    options: list[object] = ["--calibration", f"{text_file}=0.5", "--calibration", "self=1.5"]
    sizes = ["--windows", 4, "--seqlen", 16, "--cache", tmp_path / "cache"]
    reports = []
    for name, source in {
        "options": options,
        "list": f"calibration: ['{text_file}=0.5', self=1.5]",
        "mapping": f"calibration: {{'{text_file}': 0.5, self: 1.5}}",
    }.items():
        if isinstance(source, str):
            (tmp_path / "settings.yaml").write_text(source)
            source = ["--config", tmp_path / "settings.yaml"]
        output = tmp_path / name
        assert cli("prune", llama_folder, *HALF, *source, *sizes, "-o", output).code == 0
        reports.append((output / "pruning.json").read_bytes())
    assert reports[0] == reports[1] == reports[2]
    report = json.loads(reports[0])
    assert report["settings"]["calibration"] == {str(text_file): 0.5, "self": 1.5}
    assert [text["windows"] for text in report["calibration"]["sources"]] == [1, 3]


def test_a_relative_output_is_reported_as_an_absolute_path(
    cli: Cli,
    llama_folder: Path,
    texts: list[object],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.chdir(tmp_path)
    result = one_value(cli("prune", llama_folder, *texts, *HALF, "-o", "a/../out/", "--json"))
    assert result["output"] == str(tmp_path / "out")
    assert os.listdir(tmp_path) == ["out"]


def test_options_win_over_the_file_and_repeat(
    cli: Cli, llama_folder: Path, text_file: Path, tmp_path: Path
) -> None:
    config = tmp_path / "run.yaml"
    config.write_text(
        f"model: {llama_folder}\ncalibration: {text_file}\nwindows: 2\nseqlen: 16\n"
        "metric: ria\nsparsity: 0.5\ninclude: ['*.mlp.*']\n"
    )
    result = one_value(cli("prune", "--config", config, "-o", tmp_path / "one", "--json"))
    assert result["settings"]["metric"] == "ria"
    assert result["settings"]["include"] == ["*.mlp.*"]
    options = ["--metric", "magnitude", "--include", "*.q_proj", "--include", "*.k_proj"]
    result = one_value(cli("prune", "--config", config, *options, "-o", tmp_path / "two", "--json"))
    assert result["settings"]["metric"] == "magnitude"
    assert result["settings"]["include"] == ["*.q_proj", "*.k_proj"]


def test_compare_may_have_everything_from_the_file(
    cli: Cli, llama_folder: Path, text_file: Path, tmp_path: Path
) -> None:
    config = tmp_path / "table.yaml"
    config.write_text(
        f"model: {llama_folder}\ncalibration: {text_file}\ntext: {text_file}\nwindows: 2\n"
        "seqlen: 16\nwindows_eval: 1\nsparsity: 0.5\nmethods: [dense, 'max(W, G)']\n"
    )
    table = one_value(cli("compare", "--config", config, "--json"))
    assert [row["method"] for row in table["rows"]] == ["dense", "max(W, G)"]


def test_a_resolved_configuration_can_be_used_again(
    cli: Cli, llama_folder: Path, texts: list[object], tmp_path: Path
) -> None:
    assert cli("prune", llama_folder, *texts, *HALF, "-o", tmp_path / "one").code == 0
    settings = json.loads((tmp_path / "one" / "pruning.json").read_text())["settings"]
    (tmp_path / "again.yaml").write_text(json.dumps(settings))
    assert cli("prune", "--config", tmp_path / "again.yaml", "-o", tmp_path / "two").code == 0
    first, second = (tmp_path / name / "model.safetensors" for name in ("one", "two"))
    assert first.read_bytes() == second.read_bytes()


def test_evaluate_measures_every_text(cli: Cli, llama_folder: Path, text_file: Path) -> None:
    other = text_file.with_name("other.txt")
    other.write_text("Another text, of other words. " * 20)
    options = ["evaluate", llama_folder, "--seqlen", 32, "--windows", 2]
    alone = [one_value(cli(*options, "--text", text, "--json")) for text in (text_file, other)]
    both = [*options, "--text", text_file, "--text", other]
    file = text_file.with_name("both.json")
    # An earlier output is replaced.
    for _ in range(2):
        measured = one_value(cli(*both, "--json", "-o", file))
    assert measured["model"] == str(llama_folder)
    for text, values in zip(alone, measured["texts"], strict=True):
        assert values.items() <= text.items()
    for text, line in zip(alone, cli(*both).out.splitlines(), strict=True):
        windows = text["text"]
        assert line.startswith(
            f"perplexity {text['perplexity']:.2f} per token on {windows['windows']} windows of "
            f"{windows['seqlen']} tokens of {windows['text']} "
        )
        assert f"sha256 {windows['text_sha256'][:12]}" in line
        # Which stretch of the text the windows are differs between tokenizers.
        assert line.endswith(f" bits per byte, {windows['text_bytes']:,} bytes")
    beyond_the_context = cli(*both, "--seqlen", 65)
    assert beyond_the_context.err.count("longer than the model's context of 64") == 1


def test_compare_prints_a_table_without_truncation(
    cli: Cli, llama_folder: Path, texts: list[object], text_file: Path, tmp_path: Path
) -> None:
    long = " + ".join(["W * X"] * 30)
    outcome = cli(
        *["compare", llama_folder, *texts, *HALF, "--text", text_file, "--windows-eval", 2],
        *["--methods", f"dense,wanda@matrix,{long},W - W", "-o", tmp_path / "t.json"],
    )
    assert outcome.code == 0
    lines = outcome.out.splitlines()
    assert lines[0].split() == ["method", "perplexity", "zeros", "seconds", "peak", "memory"]
    assert lines[1].startswith("dense ")
    assert lines[3].startswith(long)
    assert "failed" in lines[4]
    assert lines[5].startswith("W - W: W - W cannot score model.layers.0.self_attn.q_proj")
    assert lines[6].startswith("perplexity per token on 2 windows of 16 tokens of")
    assert outcome.out.isascii()


def test_compare_prints_sizes_where_they_differ(
    cli: Cli, llama_folder: Path, texts: list[object], text_file: Path
) -> None:
    outcome = cli(
        *["compare", llama_folder, *texts, *HALF, "--text", text_file, "--windows-eval", 2],
        *["--methods", "dense,wanda@heads,W - W"],
    )
    header, dense, heads, failed, *_ = (line.split() for line in outcome.out.splitlines())
    assert header[2:5] == ["pruned", "parameters", "bytes"]
    before, after = (int(row[place].replace(",", "")) for row, place in ((dense, 3), (heads, 3)))
    removed = 2 * (32 * 16 + 2 * 32 * 8 + 16 * 32)
    assert before - after == removed
    assert dense[4] == f"{4 * before:,}"
    assert "failed" in failed


def test_compare_fails_where_every_method_fails(
    cli: Cli, llama_folder: Path, texts: list[object], text_file: Path
) -> None:
    words = ["compare", llama_folder, *texts, *HALF, "--text", text_file, "--windows-eval", 2]
    assert cli(*words, "--methods", "W - W").code == 2
    assert cli(*words, "--methods", "W - W", "--json").code == 2


def test_compare_with_json_prints_the_file_that_it_writes(
    cli: Cli, llama_folder: Path, texts: list[object], text_file: Path, tmp_path: Path
) -> None:
    file = tmp_path / "new" / "table.json"
    table = one_value(
        cli(
            *["compare", llama_folder, *texts, *HALF, "--text", text_file, "--windows-eval", 2],
            *["--methods", "dense,wanda", "-o", file, "--json"],
        )
    )
    assert table == json.loads(file.read_text())
    words = ["compare", llama_folder, *texts, *HALF, "--text", text_file, "-o", file]
    assert "holds a finished table: choose another file, or add --ov" in cli(*words).error
    assert cli(*words, "--methods", "magnitude", "--overwrite").code == 0
    assert len(json.loads(file.read_text())["rows"]) == 1


def test_metric_show_prints_the_formula_and_its_needs(cli: Cli) -> None:
    description = one_value(cli("metric", "show", "pruner-zero", "--json"))
    assert description["expression"] == "abs(W * W) * mms(G)"
    assert description["needs"] == ["G", "W"]
    assert description["leaves"] == {"W": 2, "G": 1}
    assert description["size"] == 7
    assert description["source"].startswith("Dong et al. 2024")
    assert description["latex"] == Metric.of("pruner-zero").latex
    outcome = cli("metric", "show", "pruner-zero")
    assert "expression   abs(W * W) * mms(G)\n" in outcome.out
    assert "needs        G, W\n" in outcome.out
    assert "\nW            absolute weight\n" in outcome.out
    assert "\nmms          (x - min) / (max - min) of the matrix\n" in outcome.out


def test_a_tree_file_of_another_expression_has_no_source(cli: Cli, tmp_path: Path) -> None:
    file = tmp_path / "tree.json"
    tree = json.loads(Metric.of("W * G").to_json())
    file.write_text(json.dumps({**tree, "name": "wanda"}))
    description = one_value(cli("metric", "show", file, "--json"))
    assert description["expression"] == "W * G"
    assert "source" not in description


def test_metric_json_is_read_back_by_every_command(cli: Cli, tmp_path: Path) -> None:
    outcome = cli("metric", "json", "max(W, G^0.5) * 2")
    file = tmp_path / "tree.json"
    file.write_text(outcome.out)
    assert Metric.of(file) == Metric.of("max(W, G^0.5) * 2")
    assert cli("metric", "latex", file).out.strip() == Metric.of(file).latex


def test_metric_list_names_every_metric_operator_and_terminal(cli: Cli) -> None:
    listing = one_value(cli("metric", "list", "--json"))
    assert set(listing["metrics"]) == set(NAMED)
    assert set(listing["operators"]) == set(OPERATORS)
    assert listing["terminals"] == list(TERMINALS)
    assert set(listing["meanings"]) == {*OPERATORS, *TERMINALS}
    assert set(listing["rules"]) == {"sparsegpt", "block-influence", "reap", "token-count"}
    lines = cli("metric", "list").out.splitlines()
    shown = {name: metric.text for name, metric in NAMED.items()} | listing["rules"]
    for name, ending in {**shown, **listing["meanings"]}.items():
        assert any(line.startswith(f"{name} ") and line.endswith(ending) for line in lines), name


def test_metric_show_knows_the_names_that_are_no_expressions(cli: Cli) -> None:
    assert "update obs" in one_value(cli("metric", "show", "sparsegpt", "--json"))["description"]
    assert "source       Lasby et al. 2025" in cli("metric", "show", "reap").out


def test_help_keeps_text_in_brackets(cli: Cli) -> None:
    outcome = cli("prune", "--help")
    assert outcome.code == 0
    text = " ".join(outcome.out.replace("│", " ").split())
    assert "METRIC[@SCOPE][+UPDATE]" in text
    assert "[default: as many as hold 24,576 tokens; twice as many where blocks are " in text
    assert "[default: the best method measured]" in text
    for verb in ("prune", "evaluate", "compare", "metric"):
        assert verb in cli("--help").out


def test_a_metric_over_the_weights_alone_needs_no_text(
    cli: Cli, llama_folder: Path, text_file: Path, tmp_path: Path
) -> None:
    options = ["prune", llama_folder, "--metric", "magnitude", *HALF, "--json"]
    result = one_value(cli(*options, "-o", tmp_path / "without"))
    assert result["settings"]["calibration"] is None
    one_value(cli(*options, "--calibration", text_file, "--seqlen", 16, "-o", tmp_path / "with"))
    without_text, with_text = (
        tmp_path / name / "model.safetensors" for name in ("without", "with")
    )
    assert without_text.read_bytes() == with_text.read_bytes()
    assert json.loads((tmp_path / "without" / "pruning.json").read_text())["calibration"] == {}
    assert "there was no calibration" in (tmp_path / "without" / "README.md").read_text()
    report = cli("report", tmp_path / "without", "-o", tmp_path / "page.html")
    assert report.code == 0, report


def test_a_plain_mask_is_noted_with_the_options_that_improve_it(
    cli: Cli, llama_folder: Path, texts: list[object], tmp_path: Path
) -> None:
    options = ["prune", llama_folder, *texts, *HALF, "--metric", "wanda"]
    plain = cli(*options, "-o", tmp_path / "plain", "--json")
    assert plain.err.splitlines()[-1].startswith("a plain mask: leave out --metric, or give the")
    assert plain.out.count("\n") == 1
    assert "plain mask" not in cli(*options, "-o", tmp_path / "o", "--metric", "sparsegpt").err
    assert "plain mask" not in cli(*options, "-o", tmp_path / "d", "--distill", 1).err


def test_a_shell_completes_options_and_their_values() -> None:
    words = {"_PRUNER_ZERO_COMPLETE": "complete_bash", "COMP_CWORD": "3"}
    for typed, completed in (("prune m --offl", "--offload"), ("prune m --dtype", "--dtype")):
        process = subprocess.run(
            [Path(sys.executable).with_name("pruner-zero")],
            env={**os.environ, **words, "COMP_WORDS": f"pruner-zero {typed}"},
            capture_output=True,
            text=True,
        )
        assert completed in process.stdout.split(), process


@pytest.mark.parametrize("command", [(), ("prune",), ("metric",), ("metric", "show")])
def test_help_has_a_short_name(command: tuple[str, ...], cli: Cli) -> None:
    assert cli(*command, "-h") == cli(*command, "--help")
    assert "Usage:" in cli(*command, "-h").out


def test_version_and_no_arguments(cli: Cli) -> None:
    assert cli("--version").out == f"pruner-zero {pruner_zero.__version__}\n"
    outcome = cli()
    assert outcome.code == 2
    assert "Usage:" in outcome.out + outcome.err


def test_the_real_process_keeps_stdout_for_the_result(
    llama_folder: Path, texts: list[object], tmp_path: Path
) -> None:
    process = start("prune", llama_folder, *texts, *HALF, "-o", tmp_path / "out", "--json")
    code, out, err = finish(process)
    assert code == 0
    assert json.loads(out)["output"] == str(tmp_path / "out")
    assert out.count("\n") == 1
    assert "Writing model shards" not in err
    assert "\r" not in err


def test_a_full_standard_output_is_one_line() -> None:
    command = [sys.executable, "-m", "pruner_zero", "metric", "list"]
    with open("/dev/full", "w") as full:
        run = subprocess.run(command, stdout=full, stderr=subprocess.PIPE, text=True)
    assert run.returncode == 2
    assert run.stderr == "error: the standard output has no space left\n"


@pytest.mark.parametrize("closed", [">&-", "2>&-", ">&- 2>&-"])
def test_a_closed_stream_is_one_that_nobody_reads(closed: str) -> None:
    command = f"{sys.executable} -m pruner_zero --version {closed}"
    run = subprocess.run(["bash", "-c", command], capture_output=True, text=True)
    assert (run.returncode, run.stderr) == (0, "")
    assert run.stdout.startswith("pruner-zero " if closed == "2>&-" else "")


@pytest.mark.parametrize(
    ("command", "reader", "printed"),
    [("metric list", "head -1", ["name"]), ("--version", "true", [])],
)
def test_a_reader_that_closes_its_pipe_is_no_error(
    command: str, reader: str, printed: list[str]
) -> None:
    pipe = f"{sys.executable} -m pruner_zero {command} | {reader}"
    run = subprocess.run(["bash", "-o", "pipefail", "-c", pipe], capture_output=True, text=True)
    assert run.returncode == 0
    assert run.stderr == ""
    assert [line.split()[0] for line in run.stdout.splitlines()] == printed


def test_a_terminal_gets_a_table_and_is_left_as_it_was(
    llama_folder: Path, texts: list[object], text_file: Path
) -> None:
    our_end, process_end = pty.openpty()
    arguments = ["compare", llama_folder, *texts, *HALF, "--text", text_file]
    arguments += ["--windows-eval", 2, "--methods", "dense,wanda"]
    process = subprocess.Popen(
        [sys.executable, "-m", "pruner_zero", *map(str, arguments)],
        stdin=process_end,
        stdout=process_end,
        stderr=process_end,
        env={**os.environ, "TERM": "xterm", "COLUMNS": "100"},
    )
    os.close(process_end)
    output = b""
    try:
        while piece := os.read(our_end, 65536):
            output += piece
    except OSError:
        pass  # Linux signals the end of a terminal this way.
    assert process.wait(60) == 0
    text = output.decode()
    assert "wanda" in text
    assert "┃" in text or "|" in text
    assert text.count("\x1b[?25l") == text.count("\x1b[?25h")
