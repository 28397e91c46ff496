"""Several models at once: parts beside Wanda's divergence, who is stopped, and a whole search."""

import math
import statistics
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from pruner_zero.analysis.analysis import agreements
from pruner_zero.errors import PrunerZeroError
from pruner_zero.evolution import several_models
from pruner_zero.evolution.candidate import Candidate, Evaluation
from pruner_zero.evolution.evaluator import Task
from pruner_zero.evolution.record import Record
from pruner_zero.evolution.run import Status, search
from pruner_zero.evolution.several_models import Models, Reference, judge_several
from pruner_zero.evolution.study import Study
from pruner_zero.metric.grammar import parse
from pruner_zero.report.page import page
from tests.evolution.conftest import Build
from tests.evolution.test_run import TINY, journal
from tests.text.refusals import refusal
from tests.tiny import tiny_tokenizer
from tests.tiny_models import tiny_model

MODELS = Models(("small", "large"))


@pytest.fixture
def any_divergence(monkeypatch: pytest.MonkeyPatch) -> None:
    """Pruning a tiny model changes its loss by less than windows differ, or even lowers it."""
    monkeypatch.setattr(several_models, "_LEAST", -math.inf)
    monkeypatch.setattr(several_models, "_LEAST_ERRORS", -1e9)


@torch.no_grad()
def plain_losses(model: nn.Module, windows: Tensor) -> list[float]:
    logits = model(windows).logits[:, :-1]
    return [
        float(nn.functional.cross_entropy(scores, window[1:]))
        for scores, window in zip(logits, windows, strict=True)
    ]


@pytest.mark.usefixtures("any_divergence")
def test_a_part_is_the_divergence_more_than_that_of_wanda_as_a_share_of_it(build: Build) -> None:
    evaluators = [build("llama"), build("gpt2")]
    judge = judge_several(MODELS, evaluators, "row")
    outcome = judge.run(Task(0, "all", "W", "row"))
    for evaluator, part in zip(evaluators, outcome.parts.values(), strict=True):
        losses = {}
        for text in ("W", "W * X"):
            with evaluator.masked.masked(parse(text), "row") as model:
                losses[text] = statistics.mean(plain_losses(model, evaluator.windows))
        dense = statistics.mean(plain_losses(evaluator.masked.model, evaluator.windows))
        divergence = losses["W * X"] - dense
        assert part == pytest.approx((losses["W"] - losses["W * X"]) / divergence, rel=1e-3)
    assert outcome.value == pytest.approx(statistics.mean(outcome.parts.values()))


@pytest.mark.usefixtures("any_divergence")
def test_the_reference_itself_is_at_zero_on_every_rung(build: Build) -> None:
    judge = judge_several(MODELS, [build("llama"), build("gpt2")], "row")
    for rung in ("reconstruction", "few", "all"):
        assert judge.run(Task(0, rung, "W * X", "row")).value == pytest.approx(0, abs=1e-6)


@pytest.mark.usefixtures("any_divergence")
def test_few_windows_are_of_the_first_model_and_are_not_run_again(build: Build) -> None:
    judge = judge_several(MODELS, [build("llama"), build("gpt2")], "row")
    few = judge.run(Task(0, "few", "W", "row"))
    every = judge.run(Task(0, "all", "W", "row"))
    again = judge.run(Task(0, "all", "W", "row", known=few.losses))
    assert len(few.losses) == 2
    assert len(every.losses) == 6
    assert every.losses[:2] == few.losses
    assert again.losses == every.losses


@pytest.mark.usefixtures("any_divergence")
def test_a_candidate_that_can_hardly_win_is_stopped_after_the_first_model(build: Build) -> None:
    judge = judge_several(MODELS, [build("llama"), build("gpt2")], "row")
    whole = judge.run(Task(0, "all", "W", "row"))
    best = tuple(loss - 0.2 for loss in whole.losses)
    for slack, windows in (((0.19,), 3), ((0.21,), 6), ((math.inf,), 6), ((), 6)):
        outcome = judge.run(Task(0, "all", "W", "row", best=best, slack=slack))
        assert len(outcome.losses) == windows
        assert (outcome.value is None) == (windows == 3)


def test_the_slack_is_what_others_gained_on_the_models_after() -> None:
    judged = [[0.1, 0.1, x, x] for x in (0.0, 0.2, 0.1, 0.4)]
    gains = [(0.1 + x) / 2 - 0.1 for x in (0.0, 0.2, 0.1, 0.4)]
    assert MODELS.slack(judged) == pytest.approx((2 * statistics.stdev(gains),))
    assert MODELS.slack(judged[:3]) == (math.inf,)


def test_the_error_is_that_of_a_mean_of_means() -> None:
    small, large = [1.0, 2.0, 3.0], [10.0, 14.0, 12.0]
    variances = [statistics.variance(values) / 3 for values in (small, large)]
    assert MODELS.error([*small, *large]) == pytest.approx(math.sqrt(sum(variances)) / 2)
    assert MODELS.error([1.0, 2.0]) == 0


def test_models_of_one_name_are_numbered() -> None:
    assert Models.named(["a/m", "b/m", "c/other"]).names == ("m (1)", "m (2)", "other")


@pytest.mark.parametrize(
    ("more", "refused"),
    [((0.5, 0.6, 0.4), False), ((0.5, -0.6, 0.4), True), ((-0.5, -0.6), True), ((5e-4,), True)],
)
def test_a_divergence_is_well_above_its_error(more: tuple[float, ...], refused: bool) -> None:
    """Else a share of it means nothing, as on text that the models did not write."""
    dense = [3.0, 4.0, 5.0][: len(more)]
    losses = [a + b for a, b in zip(dense, more, strict=True)]
    if refused:
        with pytest.raises(PrunerZeroError, match=r"loss of mine .* nats, too little to compare"):
            several_models._divergence(losses, dense, "mine")
    else:
        assert several_models._divergence(losses, dense, "mine") == pytest.approx(0.5)


def save_peaked(folder: Path, blocks: int = 2, seed: int = 0) -> Path:
    """A tiny model that is so sure of its next token that pruning it costs some nats."""
    model = tiny_model("llama", seed, blocks)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            parameter.mul_({"lm_head.weight": 4}.get(name, 1.5 if "_proj" in name else 1))
    model.save_pretrained(folder)
    tiny_tokenizer().save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    folder = tmp_path_factory.mktemp("models")
    return save_peaked(folder / "large", blocks=3), save_peaked(folder / "small", seed=1)


def run(models: tuple[Path, Path], output: Path, **changed: Any) -> Study:
    """On text that each model writes."""
    sizes = {"seqlen": 32, "search_windows": 12, "final_windows": 12, "evaluations": 20}
    batches = {"algorithm_settings": {"initial": 8, "batch": 8}}
    settings = {**TINY, **sizes, **batches, **changed}
    cache = models[0].parent / "cache"
    return search(models[0], others=[models[1]], output=output, cache=cache, **settings)


def test_a_text_on_which_wanda_costs_nothing_is_refused(
    models: tuple[Path, Path], text_file: Path, tmp_path: Path
) -> None:
    line = refusal(lambda: run(models, tmp_path / "run", calibration=text_file))
    assert line.startswith("Wanda's mask changes the loss of small on the search text by ")
    assert "leave out --calibration and --search-text" in line
    with pytest.raises(PrunerZeroError, match="found no metric"):
        _ = Study.open(tmp_path / "run").best


def test_a_search_over_two_models_says_where_its_metrics_win(
    models: tuple[Path, Path], tmp_path: Path
) -> None:
    study = run(models, tmp_path / "run")
    assert study.models == MODELS
    for row in study.hall_of_fame.to_rows():
        assert row["perplexity"] is None
        assert row["loss"] == pytest.approx((row["small"] + row["large"]) / 2)
    winner = study.final_race.winner
    assert winner is not None
    assert f"{winner.loss:+.1%} beside Wanda's divergence" in study.final_race.caption()
    assert study.windows["search"].keys() == {"small", "large"}
    html = page([study], "command")
    for name, part in MODELS.parts(winner.losses).items():
        assert name in html
        assert f"{part:+.1%}" in html
    again = Study.open(tmp_path / "run")
    assert again.final_race.to_rows() == study.final_race.to_rows()
    assert again.hall_of_fame.to_rows() == study.hall_of_fame.to_rows()


def test_an_analysis_says_how_alike_two_models_rank() -> None:
    parts = [(0.1, 0.3), (0.2, 0.1), (0.3, 0.2), (0.4, 0.4)]
    records = []
    for number, (small, large) in enumerate(parts):
        results = {"all": (small + large) / 2, "small": small, "large": large}
        candidate = Candidate(number, parse("W"), "row")
        records.append(Record(candidate, Evaluation(3, results["all"], results), "W"))
    found = {(each.cheap, each.expensive): each for each in agreements(records, MODELS.names)}
    assert found["large", "small"].n == 4
    # Of six pairs, two are the other way round.
    assert found["large", "small"].kendall == pytest.approx((4 - 2) / 6)


def test_it_is_the_same_with_workers_and_after_an_interruption(
    models: tuple[Path, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run(models, tmp_path / "whole", final_windows=0)
    run(models, tmp_path / "two", workers=2, final_windows=0)
    assert journal(tmp_path / "two") == journal(tmp_path / "whole")

    def interrupt(status: Status) -> None:
        if status.batch == 2:
            raise KeyboardInterrupt

    assert run(models, tmp_path / "cut", observer=interrupt, final_windows=0).interrupted
    with monkeypatch.context() as patch:
        # The references are not measured again.
        patch.delattr(Reference, "of")
        run(models, tmp_path / "cut", final_windows=0)
    assert journal(tmp_path / "cut") == journal(tmp_path / "whole")
    # The order in which models are named does not matter, other models do.
    run((models[1], models[0]), tmp_path / "swapped", final_windows=0)
    evaluations = [record.evaluation.results for record in Study.open(tmp_path / "whole").records]
    swapped = [record.evaluation.results for record in Study.open(tmp_path / "swapped").records]
    assert swapped == evaluations


def test_each_refusal_is_one_line(models: tuple[Path, Path], tmp_path: Path) -> None:
    line = refusal(lambda: run((models[0], models[0]), tmp_path / "run"))
    assert "a model is named twice" in line
