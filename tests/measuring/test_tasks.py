"""Tasks ask the questions of lm-eval, and their scores equal a plain computation."""

import copy
import json
import logging
import math
import statistics
import sys
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
import yaml

from pruner_zero import evaluate, load_model
from pruner_zero.measuring.tasks import TaskResult, _probabilities, harness_model
from pruner_zero.models.next_token import in_float32
from pruner_zero.progress import reported_to
from tests.measuring.local_task import QUESTIONS, write_task
from tests.text.refusals import refusal
from tests.tiny import Notes, tiny_tokenizer
from tests.tiny_models import tiny_model


@pytest.fixture(autouse=True)
def own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("datasets.config.HF_DATASETS_CACHE", tmp_path / "datasets")


@torch.no_grad()
def log_probability(model: torch.nn.Module, context: str, choice: str) -> float:
    """The sum of the log-probabilities of the tokens of `choice` after `context`."""
    before, after = (
        tiny_tokenizer()(text, add_special_tokens=False)["input_ids"] for text in (context, choice)
    )
    logits = model(torch.tensor([before + after])).logits[0].float().log_softmax(-1)
    positions = range(len(before) - 1, len(before) + len(after) - 1)
    return sum(float(logits[i, token]) for i, token in zip(positions, after, strict=True))


def plain(
    model: torch.nn.Module,
    questions: Sequence[dict[str, Any]],
    before: str = "",
    after: str = "",
    separator: str = " ",
) -> dict[str, float]:
    """acc and acc_norm: how often the right choice is the most likely, in all or per character."""
    right = {"acc": 0, "acc_norm": 0}
    for question in questions:
        context = before + question["question"] + after
        choices = [separator + choice for choice in question["choices"]]
        sums = [log_probability(model, context, choice) for choice in choices]
        lengths = map(len, question["choices"])
        shares = [total / length for total, length in zip(sums, lengths, strict=True)]
        right["acc"] += sums.index(max(sums)) == question["answer"]
        right["acc_norm"] += shares.index(max(shares)) == question["answer"]
    return {name: count / len(questions) for name, count in right.items()}


def standard_error(share: float, count: int) -> float:
    """The standard error of a mean of `count` zeros and ones, from the unbiased variance."""
    return math.sqrt(share * (1 - share) / (count - 1))


def ask(folder: Path, **options: Any) -> TaskResult:
    arguments = {"include_path": folder, "tokenizer": tiny_tokenizer(), **options}
    result: TaskResult = evaluate(tiny_model("llama"), tasks="kinds", **arguments)
    return result


def scores(row: Mapping[str, Any]) -> dict[str, Any]:
    return {name: row[name] for name in ("acc", "acc_norm")}


@pytest.mark.parametrize(("batch_size", "limit"), [(1, None), (5, None), (1, 5)])
def test_the_scores_equal_the_plain_computation(
    tmp_path: Path, batch_size: int, limit: int | None
) -> None:
    questions = QUESTIONS[:limit]
    wanted = plain(tiny_model("llama"), questions)
    # If they were equal, one score could be taken for the other.
    assert limit or wanted["acc"] != wanted["acc_norm"]
    (row,) = ask(write_task(tmp_path), batch_size=batch_size, limit=limit).rows
    assert list(row) == [
        *("task", "version", "num_fewshot", "documents"),
        *("acc", "acc_stderr", "acc_norm", "acc_norm_stderr", "prob", "prob_stderr"),
    ]
    assert (row["task"], row["num_fewshot"], row["documents"]) == ("kinds", 0, len(questions))
    assert scores(row) == pytest.approx(wanted)
    for name, value in wanted.items():
        assert row[f"{name}_stderr"] == pytest.approx(standard_error(value, len(questions)))


def test_the_probability_of_the_right_choice_is_the_softmax_over_the_choices(
    tmp_path: Path,
) -> None:
    model = tiny_model("llama")
    wanted = []
    for question in QUESTIONS:
        sums = [log_probability(model, question["question"], f" {c}") for c in question["choices"]]
        powers = [math.exp(total) for total in sums]
        wanted.append(powers[question["answer"]] / sum(powers))
    result = ask(write_task(tmp_path))
    assert result.probabilities["kinds"] == pytest.approx(wanted, rel=1e-4)
    assert result.rows[0]["prob"] == pytest.approx(sum(wanted) / len(wanted))
    error = statistics.stdev(wanted) / math.sqrt(len(wanted))
    assert result.rows[0]["prob_stderr"] == pytest.approx(error)
    written = result.to_json()["probabilities"]["kinds"]
    assert written == pytest.approx(wanted, abs=1e-5)


@pytest.mark.parametrize("target", ["1", "a", 2, -1, [0, 1]])
def test_a_right_choice_that_no_number_of_a_choice_names_has_no_probability(target: Any) -> None:
    # lm-eval looks a text up among the choices, which may be digits.
    samples = [{"doc_id": 0, "target": target, "filtered_resps": [(-1.0, False), (-2.0, False)]}]
    assert _probabilities(samples) == ()
    [probability] = _probabilities([{**samples[0], "target": 1}])
    assert probability == pytest.approx(1 / (1 + math.e))


def test_answers_are_compared_with_another_model_question_by_question(
    tmp_path: Path, llama_folder: Path
) -> None:
    write_task(tmp_path)
    beside = [str(llama_folder)]
    pruned = load_model(llama_folder)
    with torch.no_grad():
        for parameter in pruned.model.parameters():
            parameter[parameter.abs() < parameter.abs().median()] = 0
    options: dict[str, Any] = {"tasks": "kinds", "include_path": tmp_path}
    result = evaluate(pruned, beside=beside, **options)
    dense = evaluate(llama_folder, **options)
    (row,) = result.rows
    differences = [
        mine - other
        for mine, other in zip(
            result.probabilities["kinds"], dense.probabilities["kinds"], strict=True
        )
    ]
    distances = [abs(difference) for difference in differences]
    for name, values in (("gain", differences), ("moved", distances)):
        error = statistics.stdev(values) / math.sqrt(len(values))
        assert row[name] == pytest.approx(statistics.fmean(values))
        assert row[f"{name}_stderr"] == pytest.approx(error)
    assert row["moved"] > abs(row["gain"])
    assert row["prob"] == pytest.approx(dense.rows[0]["prob"] + row["gain"])
    (same,) = evaluate(llama_folder, beside=beside, **options).rows
    assert (same["gain"], same["moved"]) == (0, 0)


def test_a_single_question_has_no_standard_error(tmp_path: Path) -> None:
    assert ask(write_task(tmp_path), limit=1).rows[0]["prob_stderr"] is None


def test_examples_come_before_each_question(tmp_path: Path) -> None:
    first, second = QUESTIONS[:2]
    shown = "".join(
        f"{question['question']} {question['choices'][question['answer']]}\n\n"
        for question in (first, second)
    )
    questions = QUESTIONS[2:]
    folder = write_task(tmp_path, questions, examples=QUESTIONS[:3])
    wanted = plain(tiny_model("llama"), questions, shown)
    (row,) = ask(folder, num_fewshot=2).rows
    assert row["num_fewshot"] == 2
    assert scores(row) == pytest.approx(wanted)
    assert wanted != plain(tiny_model("llama"), questions)


def test_questions_are_asked_in_the_chat_template(tmp_path: Path) -> None:
    tokenizer = tiny_tokenizer()
    assert "no chat template" in refusal(
        lambda: ask(write_task(tmp_path), apply_chat_template=True)
    )
    tokenizer.chat_template = "{% for m in messages %}Q:{{ m.content }}\nA:{% endfor %}"
    result = ask(tmp_path, tokenizer=tokenizer, apply_chat_template=True)
    wanted = plain(tiny_model("llama"), QUESTIONS, "Q:", "\nA:", separator="")
    assert scores(result.rows[0]) == wanted


def test_data_files_beside_the_task_file_are_found_from_any_folder(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = tmp_path / "tasks"
    folder.mkdir()
    file = write_task(folder) / "kinds.yaml"
    task = yaml.safe_load(file.read_text())
    task["dataset_kwargs"] = {"data_files": {"test": "rows.jsonl"}}
    file.write_text(yaml.safe_dump(task))
    monkeypatch.chdir(tmp_path)
    assert ask(Path("tasks")).rows[0]["documents"] == len(QUESTIONS)
    assert Path.cwd() == tmp_path


def test_log_probabilities_are_fp32_for_a_narrow_model(llama_folder: Path) -> None:
    narrow = load_model(llama_folder, "bfloat16")
    pairs = [
        (question["question"], choice) for question in QUESTIONS for choice in question["choices"]
    ]
    requests = [SimpleNamespace(args=(context, f" {choice}")) for context, choice in pairs]
    # Products that a CPU emulates in bfloat16 depend on the shapes of both factors.
    with in_float32(narrow.model):
        actual = [value for value, _ in harness_model(narrow, 1).loglikelihood(requests)]
        # One bfloat16 step at a log-probability near -50 is 0.25.
        wanted = [log_probability(narrow.model, context, f" {choice}") for context, choice in pairs]
    assert actual == pytest.approx(wanted, abs=1e-3)


def test_a_perplexity_per_word_is_named_word_perplexity(tmp_path: Path) -> None:
    documents = [{"text": "ab cd ef gh"}, {"text": "the more words the better"}]
    rows = tmp_path / "rows.jsonl"
    rows.write_text("".join(json.dumps(document) + "\n" for document in documents))
    (tmp_path / "prose.yaml").write_text(
        yaml.safe_dump(
            {
                "task": "prose",
                "dataset_path": "json",
                "dataset_kwargs": {"data_files": {"test": str(rows)}},
                "output_type": "loglikelihood_rolling",
                "test_split": "test",
                "doc_to_text": "",
                "doc_to_target": "{{text}}",
                "metric_list": [{"metric": "word_perplexity"}, {"metric": "byte_perplexity"}],
            }
        )
    )
    model = tiny_model("llama")
    (result,) = evaluate(
        model, tasks="prose", include_path=tmp_path, tokenizer=tiny_tokenizer()
    ).rows
    total = 0.0
    for document in documents:
        tokens = torch.tensor([[0, *tiny_tokenizer()(document["text"])["input_ids"]]])
        with torch.no_grad():
            logits = model(tokens).logits[0, :-1].float().log_softmax(-1)
        total += float(logits.gather(1, tokens[0, 1:, None]).sum())
    words, length = 4 + 5, sum(len(document["text"]) for document in documents)
    assert result["word_perplexity"] == pytest.approx(math.exp(-total / words))
    assert result["byte_perplexity"] == pytest.approx(math.exp(-total / length))


def test_nothing_is_left_changed(tmp_path: Path) -> None:
    model, tokenizer = tiny_model("llama"), tiny_tokenizer()
    before, handlers = (
        copy.deepcopy(model.state_dict()),
        list(logging.getLogger("lm_eval").handlers),
    )
    torch.manual_seed(3)
    evaluate(model, tasks="kinds", include_path=write_task(tmp_path), tokenizer=tokenizer)
    drawn = torch.rand(()).item()
    torch.manual_seed(3)
    assert drawn == torch.rand(()).item()
    assert all(torch.equal(before[name], value) for name, value in model.state_dict().items())
    assert tokenizer.pad_token is None
    assert logging.getLogger("lm_eval").handlers == handlers


class Heard(Notes):
    """Keeps the labels of tracked work too."""

    def __init__(self, bars: bool = False) -> None:
        super().__init__()
        self.bars = bars
        self.labels: list[str] = []

    def track(self, items: Any, label: str, total: int | None = None) -> Any:
        self.labels.append(label)
        return super().track(items, label, total)


def test_lm_eval_draws_its_bars_only_where_ours_are_drawn(
    tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    folder, heard = write_task(tmp_path), Heard()
    with reported_to(heard):
        ask(folder)
    assert capfd.readouterr() == ("", "")
    assert heard.labels == ["task data"]
    with reported_to(Heard(bars=True)):
        ask(folder)
    assert "loglikelihood" in capfd.readouterr().err


def test_a_context_that_is_cut_is_noted_once(tmp_path: Path) -> None:
    heard = Notes()
    long = [{**question, "question": "word " * 20} for question in QUESTIONS]
    with reported_to(heard):
        ask(write_task(tmp_path, long))
    (note,) = heard.lines
    assert "maximum length (64)" in note


def test_refusals(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = write_task(tmp_path, examples=QUESTIONS[:3])

    def line(tasks: Any = "kinds", **options: Any) -> str:
        options = {"include_path": folder, **options}
        return refusal(lambda: evaluate("none", tasks=tasks, **options))

    assert line("") == "no task is named: give some, such as --tasks arc_easy,boolq"
    assert line(limit=0).startswith("--limit is 0: ")
    assert line(num_fewshot=-1).startswith("--num-fewshot is -1: ")
    assert line(include_path=tmp_path / "no").startswith("there is no folder ")
    assert line(num_fewshot=3) == (
        "task kinds has 3 documents to take examples from: choose --num-fewshot 2 or less"
    )
    assert "give a text to measure perplexity on, tasks, or speed" in refusal(
        lambda: evaluate("none")  # type: ignore[call-overload]
    )
    (tmp_path / "rows.jsonl").unlink()
    assert line().startswith("task kinds could not be loaded (Unable to find")
    monkeypatch.setitem(sys.modules, "lm_eval.tasks", None)
    assert "pip install 'lm-eval[hf]'" in line()


def test_a_damaged_model_is_refused(tmp_path: Path) -> None:
    model = tiny_model("llama")
    with torch.no_grad():
        model.model.norm.weight[0] = torch.nan
    folder = write_task(tmp_path)
    assert "model.norm.weight has 1 weights that are NaN or infinite" in refusal(
        lambda: evaluate(model, tasks="kinds", include_path=folder, tokenizer=tiny_tokenizer())
    )
    with torch.no_grad():
        model.model.norm.weight.fill_(1e38)
    assert "log-probabilities are NaN" in refusal(
        lambda: evaluate(model, tasks="kinds", include_path=folder, tokenizer=tiny_tokenizer())
    )


def test_a_choice_longer_than_the_context_is_one_line(tmp_path: Path) -> None:
    long = [{**QUESTIONS[0], "choices": ["yes", "no " * 40]}]
    assert refusal(lambda: ask(write_task(tmp_path, long))) == (
        "lm-eval cannot run these tasks: a choice may be longer than the model's context"
    )


def test_an_unreachable_hub_is_reported_quickly_in_one_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # No program listens on this port, so that the test is the same on a machine with a network.
    monkeypatch.setattr("huggingface_hub.constants.ENDPOINT", "http://127.0.0.1:9")
    file = write_task(tmp_path) / "kinds.yaml"
    task = yaml.safe_load(file.read_text())
    del task["dataset_kwargs"]
    file.write_text(yaml.safe_dump({**task, "dataset_path": "someone/kinds"}))
    started = time.monotonic()
    line = refusal(lambda: evaluate("none", tasks="kinds", include_path=tmp_path))
    assert time.monotonic() - started < 10
    assert line == (
        "task kinds needs its data from the Hugging Face hub, which cannot be reached: "
        "set HF_HUB_OFFLINE=1 if they are in its cache, or give a folder of tasks whose data are "
        "local files (--include-path)"
    )


@pytest.mark.slow
def test_an_unknown_task_names_near_ones(tmp_path: Path) -> None:
    # Slow, for lm-eval reads thousands of files to know its own tasks.
    folder = write_task(tmp_path)
    line = refusal(lambda: evaluate("none", tasks="arc_esay,kinds", include_path=folder))
    assert line.startswith(f"no task 'arc_esay' in {folder} or lm-eval: did you mean 'arc_easy'")
    line = refusal(lambda: evaluate("none", tasks="zzzzzzzzzz"))
    assert line == ("no task 'zzzzzzzzzz' in lm-eval: `lm-eval ls tasks` lists them")
