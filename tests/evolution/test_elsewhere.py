"""Candidates judged where the model is: the same masks and losses as in main memory."""

from pathlib import Path
from typing import Any

import pytest

from pruner_zero.devices import CPU
from pruner_zero.errors import PrunerZeroError
from pruner_zero.evolution.build import JudgedModel, check_settings
from pruner_zero.evolution.evaluator import RUNGS, Evaluator, Outcome, Task
from pruner_zero.execution.executor import SerialExecutor
from pruner_zero.execution.start import make_executor
from pruner_zero.metric.grammar import parse
from pruner_zero.models.language_model import LanguageModel
from pruner_zero.text.mixture import load_mixture
from tests.elsewhere import HERE, THERE, elsewhere
from tests.evolution.conftest import tiny_settings
from tests.models.test_placement import place_block_after_block
from tests.tiny import tiny_tokenizer
from tests.tiny_models import tiny_model


@pytest.fixture(autouse=True)
def exact(monkeypatch: pytest.MonkeyPatch) -> None:
    """Candidates are judged in float32."""
    monkeypatch.setattr("pruner_zero.evolution.build.has_fast_bfloat16", lambda device: False)


def evaluator(prose: str, cache: Path, **changed: Any) -> Evaluator:
    settings = tiny_settings(**changed)
    model = LanguageModel(tiny_model("llama"), tiny_tokenizer(), "tiny")
    if cache.name == "elsewhere":
        model.model.to(HERE)
    elif cache.name == "both":
        place_block_after_block(model.model)
    corpus = load_mixture([prose])
    return JudgedModel.of(model, settings, corpus, corpus, cache).evaluator(settings)


def outcomes(judge: Evaluator, expression: str, scope: Any) -> list[Outcome]:
    return [judge.run(Task(0, rung, expression, scope)) for rung in RUNGS]


def kept(judge: Evaluator, expression: str, scope: Any) -> list[list[list[bool]]]:
    """The masks of all matrices."""
    return [mask.tolist() for mask in judge.masked.masks(parse(expression), scope)]


@pytest.mark.parametrize(
    ("expression", "scope", "settings"),
    [
        ("W * X", "row", {}),
        ("mms(W * G)", "global", {}),
        ("quotient(W, D)", "matrix", {}),
        ("W * X", "row", {"pattern": "2:4", "sparsity": None}),
    ],
)
def test_every_rung_gives_the_same_results_elsewhere(
    expression: str, scope: str, settings: dict[str, Any], prose: str, tmp_path: Path
) -> None:
    space = {"terminals": ["W", "G", "X", "D"]}
    here = evaluator(prose, tmp_path / "here", space=space, **settings)
    expected = outcomes(here, expression, scope)
    with elsewhere():
        there = evaluator(prose, tmp_path / "elsewhere", space=space, **settings)
        assert there.masked.device == HERE
        actual = outcomes(there, expression, scope)
        assert kept(there, expression, scope) == kept(here, expression, scope)
    for outcome, reference in zip(actual, expected, strict=True):
        assert outcome.reason is None
        assert outcome.value == pytest.approx(reference.value, rel=1e-3)


def test_every_rung_gives_the_same_results_on_two_devices(prose: str, tmp_path: Path) -> None:
    here = evaluator(prose, tmp_path / "here")
    expected = outcomes(here, "W * X", "global")
    with elsewhere():
        judge = evaluator(prose, tmp_path / "both")
        assert {matrix.weight.device for matrix in judge.sample} == {HERE, THERE}
        actual = outcomes(judge, "W * X", "global")
        assert kept(judge, "W * X", "global") == kept(here, "W * X", "global")
    for outcome, reference in zip(actual, expected, strict=True):
        assert outcome.value == pytest.approx(reference.value, rel=1e-3)


def test_elsewhere_several_windows_share_a_forward_pass(prose: str, tmp_path: Path) -> None:
    passes: list[int] = []

    def count(module: Any, args: tuple[Any, ...]) -> None:
        passes.append(len(args[0]))

    def losses(judge: Evaluator) -> tuple[float, ...]:
        passes.clear()
        with judge.masked.model.register_forward_pre_hook(count):
            return judge.run(Task(0, "all", "W * X", "row")).losses

    expected = losses(evaluator(prose, tmp_path / "here", search_windows=8))
    assert passes == [1] * 8
    with elsewhere():
        actual = losses(evaluator(prose, tmp_path / "elsewhere", search_windows=8))
    assert passes == [8]
    assert actual == pytest.approx(expected, rel=1e-4)


def test_elsewhere_one_worker_judges_unless_more_are_asked_for(prose: str, tmp_path: Path) -> None:
    with elsewhere():
        judge = evaluator(prose, tmp_path / "elsewhere")
        assert isinstance(
            make_executor(judge, None, None, shareable=judge.masked.device == CPU),
            SerialExecutor,
        )


@pytest.mark.parametrize(
    "sharing",
    [{"workers": 2}, {"ray_address": "auto"}],
)
def test_processes_that_share_the_model_have_it_in_main_memory(
    sharing: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("pruner_zero.devices.present_devices", lambda: [HERE, CPU])
    assert tiny_settings().placed_on == "auto"
    assert tiny_settings(**sharing).placed_on == "cpu"
    assert tiny_settings(**sharing, device="cpu").placed_on == "cpu"
    option = "--" + next(iter(sharing)).replace("_", "-")
    with pytest.raises(PrunerZeroError, match=f"^{option}.* share the model in main memory"):
        check_settings(tiny_settings(**sharing, device=str(HERE)))
