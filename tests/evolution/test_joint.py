"""Metrics and shares evolved together: who inherits what, and that pruning obeys both."""

import math
from pathlib import Path
from typing import Any

import pytest
import torch

from pruner_zero.evolution.allocation import JointEvolution, JointSettings
from pruner_zero.evolution.archive import read_records
from pruner_zero.evolution.candidate import Candidate, Evaluation
from pruner_zero.evolution.evaluator import Evaluator
from pruner_zero.evolution.offsets import OffsetSettings, OffsetVariation
from pruner_zero.evolution.run import SearchResult, write_shares
from pruner_zero.evolution.space import SearchSpace
from pruner_zero.metric import parse
from pruner_zero.models import load_model, next_token_loss
from pruner_zero.pruning import prune
from pruner_zero.text import load_corpus, random_windows
from tests.evolution.conftest import Build
from tests.evolution.synthetic import by_rank
from tests.evolution.test_allocation import far, layout
from tests.evolution.test_run import run, same_however_it_ran

JOINT: dict[str, Any] = {
    "allocation": "evolved",
    "algorithm_settings": {"initial": 32, "batch": 24, "shared": 0.5, "moved": 0.5},
    "evaluations": 120,
}


def evolution(seed: int = 0, **settings: Any) -> JointEvolution:
    space = SearchSpace(scopes=("row", "matrix"))
    return JointEvolution(space, seed, layout(), JointSettings(**settings))


def told(algorithm: JointEvolution, batches: int) -> list[tuple[Candidate, Evaluation]]:
    """Values that both an expression near W · X and shares near hidden ones lower."""
    hidden = by_rank("W * X")
    results: list[tuple[Candidate, Evaluation]] = []
    for _ in range(batches):
        batch = []
        for one in algorithm.ask():
            found = hidden(one)
            away = far(one) if one.offsets else far(UNMOVED)
            value = found.value + away
            batch.append((one, Evaluation(1, value, expected=value) if found.counts else found))
        algorithm.tell(batch)
        results += batch
    return results


UNMOVED = Candidate(0, parse("W"), "row", offsets=OffsetVariation(layout(), OffsetSettings()).none)


def test_children_inherit_and_migrants_leave_their_offsets_behind() -> None:
    results = told(evolution(), 8)
    known = {candidate.number: candidate for candidate, _ in results}
    seen = set()
    for one in known.values():
        if not one.parents:
            continue
        mother = known[one.parents[0]]
        if one.operation == "migrate":
            assert (one.offsets, one.expression) == ((), mother.expression)
        elif one.operation in ("nudge", "curve", "stretch", "blend"):
            assert one.expression == mother.expression
            assert one.offsets not in ((), mother.offsets)
        else:
            assert one.offsets == mother.offsets
        seen.add((one.operation, bool(one.offsets)))
    assert {("crossover", True), ("crossover", False), ("grow", True), ("grow", False)} <= seen
    assert {("nudge", True), ("blend", True), ("migrate", False)} <= seen


def test_nothing_is_asked_twice_and_an_expression_may_return_with_other_offsets() -> None:
    asked = [candidate for candidate, _ in told(evolution(), 8)]
    marks = {(one.expression, one.scope, one.offsets) for one in asked}
    assert len(marks) == len(asked)
    assert len({(one.expression, one.scope) for one in asked}) < len(asked)


def test_a_replayed_evolution_asks_the_same_and_another_seed_asks_others() -> None:
    once = told(evolution(3), 3)
    assert told(evolution(3), 3) == once
    assert told(evolution(4), 3) != once


def test_shares_are_improved_along_with_the_metric() -> None:
    def lowest(**settings: Any) -> float:
        return min(
            one.value for seed in range(2) for _, one in told(evolution(seed, **settings), 16)
        )

    assert lowest() < 0.5 * lowest(shared=0.0, moved=0.0)


def test_nothing_is_not_stretched() -> None:
    variation = OffsetVariation(layout(), OffsetSettings())
    generator = evolution().generator
    for _ in range(50):
        operation, moved = variation.mutate(generator, variation.none)
        assert operation != "stretch"
        assert any(moved)


@pytest.fixture(scope="module")
def joint(
    llama_folder: Path, text_file: Path, tmp_path_factory: pytest.TempPathFactory
) -> tuple[Path, SearchResult]:
    """A finished joint search that nothing disturbed."""
    output = tmp_path_factory.mktemp("runs") / "joint"
    return output, run(llama_folder, output, text_file, **JOINT)


def test_workers_change_nothing_and_an_interruption_resumes(
    joint: tuple[Path, SearchResult], llama_folder: Path, text_file: Path, tmp_path: Path
) -> None:
    folder, result = joint
    offsets = [bool(one.candidate.offsets) for one in result.records]
    assert any(offsets)
    assert not all(offsets)
    kept = [one.candidate for one in read_records(folder)]
    assert kept == [one.candidate for one in result.records]
    same_however_it_ran(llama_folder, text_file, folder, tmp_path, **JOINT)


@pytest.mark.parametrize("scope", ["global", "row"])
def test_pruning_by_the_files_leaves_the_model_that_was_judged(
    llama_folder: Path, text_file: Path, tmp_path: Path, scope: str
) -> None:
    output = tmp_path / "run"
    # Where every candidate has offsets, so has the best.
    shares = {**JOINT["algorithm_settings"], "shared": 1.0}
    given = {**JOINT, "algorithm_settings": shares, "judge_dtype": "float32", "scope": scope}
    result = run(llama_folder, output, text_file, **given)
    best = result.hall_of_fame.best
    assert best is not None
    assert best.candidate.offsets
    text = text_file.read_text()
    # The halves that the search takes where both of its texts are one file.
    first, second = text[: len(text) // 2], text[len(text) // 2 :]
    pruned = prune(
        llama_folder,
        str(output / "best.json"),
        calibration=[first],
        sparsity=0.5,
        allocation=str(output / "best_allocation.json"),
        mode="one-shot",
        windows=4,
        seqlen=16,
    )
    assert pruned.method.scope == best.candidate.applied_scope
    tokenizer = load_model(str(llama_folder)).tokenizer
    judged = random_windows(load_corpus([second]), tokenizer, 3, 16, 0).tokens
    with torch.no_grad():
        model = pruned.language_model.model
        losses = [float(next_token_loss(model, one[None])) for one in judged]
    assert math.fsum(losses) / 3 == pytest.approx(best.evaluation.results["all"], rel=1e-6)


def test_the_file_of_shares_is_gone_where_the_best_has_none(build: Build, tmp_path: Path) -> None:
    evaluator: Evaluator = build("llama", allocation="evolved")
    file = tmp_path / "best_allocation.json"
    offsets = OffsetVariation(evaluator.layout, OffsetSettings()).none
    write_shares(file, Candidate(0, parse("W"), "row", offsets=offsets), evaluator)
    assert file.exists()
    write_shares(file, Candidate(1, parse("W"), "row"), evaluator)
    assert not file.exists()
    write_shares(file, Candidate(1, parse("W"), "row"), evaluator)
