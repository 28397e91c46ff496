"""Evolved shares: what offsets mean, how they are searched, and that pruning obeys the best."""

import json
import math
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from pruner_zero.errors import PrunerZeroError
from pruner_zero.evolution.allocation import AllocationEvolution, AllocationSettings
from pruner_zero.evolution.archive import JOURNAL
from pruner_zero.evolution.candidate import Candidate, Evaluation
from pruner_zero.evolution.evaluator import Task
from pruner_zero.evolution.layout import Layout
from pruner_zero.evolution.run import SearchResult
from pruner_zero.metric import parse
from pruner_zero.models import find_matrices, next_token_loss
from pruner_zero.pruning import prune
from pruner_zero.sparsity import Scope, read_allocation
from tests.evolution.conftest import Build
from tests.evolution.test_run import journal, run, same_however_it_ran
from tests.processes import Forked
from tests.tiny import tiny_tokenizer
from tests.tiny_models import tiny_model

SHARES: dict[str, Any] = {
    "allocation": "evolved",
    "metric": "wanda@matrix",
    "algorithm_settings": {"initial": 16, "batch": 8, "parents": 4},
    "evaluations": 32,
}
BLOCKS, KINDS = 6, 4


def layout() -> Layout:
    names = [(block, kind) for block in range(BLOCKS) for kind in range(KINDS)]
    return Layout(
        {f"{block}.{kind}": block for block, kind in names},
        {f"{block}.{kind}": str(kind) for block, kind in names},
        {f"{block}.{kind}": (16, 16 * (1 + kind)) for block, kind in names},
    )


def evolution(seed: int = 0, **settings: Any) -> AllocationEvolution:
    own = AllocationSettings(**settings)
    return AllocationEvolution(parse("W * X"), "matrix", layout(), seed, own)


def far(candidate: Candidate) -> float:
    """How far the shares are from some that only a search would find."""
    wanted = [*np.linspace(-0.8, 0.8, BLOCKS).tolist(), 0.5, -0.5, 0.3, -0.3]
    aim = layout().allocation(wanted, 0.5).sparsity
    shares = layout().allocation(candidate.offsets, 0.5).sparsity
    return math.fsum((shares[name] - aim[name]) ** 2 for name in aim)


def told(algorithm: AllocationEvolution, batches: int) -> list[tuple[Candidate, Evaluation]]:
    results: list[tuple[Candidate, Evaluation]] = []
    for _ in range(batches):
        batch = [(one, Evaluation(1, far(one), expected=far(one))) for one in algorithm.ask()]
        algorithm.tell(batch)
        results += batch
    return results


def test_offsets_are_of_blocks_in_order_and_of_kinds_experts_together() -> None:
    model = tiny_model("mixtral", blocks=3)
    whole = Layout.of(find_matrices(model))
    assert whole.depth == 3
    assert len(whole.kind_names) == 6
    assert sum(kind.endswith("[*]") for kind in whole.kind_names) == 2
    last = Layout.of(find_matrices(model, include=("*.2.self_attn.*",)))
    assert (last.depth, len(last.kind_names)) == (1, 4)
    shares = whole.allocation([1.0, 0.0, -1.0, *[0.0] * 6], 0.5).sparsity
    for kind in whole.kind_names:
        own = [shares[name] for name in shares if whole.kinds[name] == kind]
        assert own == sorted(own, reverse=True)


def test_the_first_candidate_prunes_all_alike() -> None:
    first = evolution().ask()[0]
    assert set(layout().allocation(first.offsets, 0.5).sparsity.values()) == {0.5}


@pytest.mark.parametrize("architecture", ["llama", "gpt2", "mixtral"])
def test_shares_of_a_metric_over_the_whole_model_are_where_its_offsets_start(
    build: Build, architecture: str
) -> None:
    evaluator = build(architecture, allocation="evolved", metric="W * X", scope="global")
    names = [one.name for one in evaluator.masked.matrices]
    first, second, *_ = AllocationEvolution(parse("W * X"), "global", evaluator.layout, 0).ask()
    assert (first.scope, first.applied_scope, first.operation) == ("global", "matrix", "start")
    masks = list(evaluator.masked.masks(first.expression, "global"))
    chosen = [1 - float(mask.float().mean()) for mask in masks]
    assert max(chosen) - min(chosen) > 0.05
    shares = evaluator.allocation_of(first)
    assert shares is not None
    assert [shares.sparsity[name] for name in names] == pytest.approx(chosen, abs=1e-6)
    whole = evaluator.run(Task(1, "all", "W * X", "global"))
    assert evaluator.run(Task(0, "all", "W * X", "global", first.offsets)).losses == whole.losses
    moved = evaluator.allocation_of(second)
    assert moved is not None
    inside = replace(evaluator, allocation=moved).run(Task(2, "all", "W * X", "matrix"))
    assert evaluator.run(Task(3, "all", "W * X", "global", second.offsets)).losses == inside.losses
    assert inside.losses != whole.losses


def test_no_offsets_are_asked_twice_and_constants_are_none() -> None:
    results = told(evolution(), 12)
    offsets = [candidate.offsets for candidate, _ in results]
    assert len(set(offsets)) == len(offsets) == 48 + 11 * 24
    assert [candidate.number for candidate, _ in results] == list(range(len(results)))
    for one in offsets:
        assert abs(math.fsum(one[:BLOCKS])) < 1e-3
        assert abs(math.fsum(one[BLOCKS:])) < 1e-3


def test_a_replayed_evolution_asks_the_same_and_another_seed_asks_others() -> None:
    once = told(evolution(3), 3)
    assert told(evolution(3), 3) == once
    assert told(evolution(4), 3) != once


def test_children_of_the_best_come_far_closer_than_random_ones() -> None:
    blind = evolution(initial=300)
    random = min(far(candidate) for candidate in blind.ask())
    assert min(one.value for _, one in told(evolution(), 12)) < 0.2 * random


@pytest.mark.parametrize(
    ("architecture", "scope", "update"),
    [
        ("llama", "row", "none"),
        ("llama", "matrix", "obs"),
        ("gpt2", "block", "none"),
        ("mixtral", "block", "exact"),
    ],
)
def test_the_model_that_is_judged_is_the_one_that_pruning_by_the_file_leaves(
    build: Build, prose: str, tmp_path: Path, architecture: str, scope: Scope, update: str
) -> None:
    masked = build(
        architecture, allocation="evolved", metric="wanda", scope=scope, update=update
    ).masked
    found = Layout.of(masked.matrices)
    generator = np.random.default_rng(0)
    offsets = generator.normal(0, 0.5, found.depth + len(found.kind_names)).round(4).tolist()
    file = tmp_path / "shares.json"
    file.write_text(found.allocation(offsets, 0.5).to_json())
    expected = tiny_model(architecture)
    prune(
        expected,
        "wanda",
        tokenizer=tiny_tokenizer(),
        calibration=[prose[: len(prose) // 2]],
        sparsity=0.5,
        scope=scope,
        update=update,
        allocation=str(file),
        mode="one-shot",
        windows=4,
        seqlen=16,
        cache=tmp_path / "other",
    )
    wanted = {matrix.name: matrix.weight for matrix in find_matrices(expected)}
    shares = found.shares(found.allocation(offsets, 0.5), 0.5, scope)
    with masked.masked(parse("W * X"), scope, shares):
        for matrix in masked.matrices:
            assert torch.equal(matrix.weight, wanted[matrix.name]), matrix.name


@pytest.fixture(scope="module")
def evolved(
    llama_folder: Path, text_file: Path, tmp_path_factory: pytest.TempPathFactory
) -> tuple[Path, SearchResult]:
    """A finished evolution of shares that nothing disturbed."""
    output = tmp_path_factory.mktemp("runs") / "evolved"
    return output, run(llama_folder, output, text_file, **SHARES)


def test_the_best_shares_are_better_than_none_and_pruning_obeys_them(
    evolved: tuple[Path, SearchResult], llama_folder: Path, text_file: Path, tmp_path: Path
) -> None:
    folder, result = evolved
    assert result.hall_of_fame.best is not None
    uniform, best = result.records[0].evaluation, result.hall_of_fame.best.evaluation
    assert best.rung == 3
    assert best.results["few"] < uniform.results.get("few", math.inf)
    shares = read_allocation(folder / "best_allocation.json").sparsity
    assert len({round(share, 3) for share in shares.values()}) > 3
    pruned = prune(
        llama_folder,
        str(folder / "best.json"),
        calibration=text_file,
        sparsity=0.5,
        allocation=str(folder / "best_allocation.json"),
        windows=2,
        seqlen=16,
        output=tmp_path / "pruned",
    )
    assert (pruned.method.scope, pruned.sparsity) == ("matrix", 0.5)
    for record in pruned.records:
        assert record.sparsity == pytest.approx(shares[record.name], abs=0.01)


def test_workers_change_nothing_and_an_interruption_resumes(
    evolved: tuple[Path, SearchResult], llama_folder: Path, text_file: Path, tmp_path: Path
) -> None:
    folder, _ = evolved
    same_however_it_ran(llama_folder, text_file, folder, tmp_path, **SHARES)
    shares = (folder / "best_allocation.json").read_bytes()
    assert (tmp_path / "stopped" / "best_allocation.json").read_bytes() == shares


def written(output: Path) -> int:
    """The lines of the journal so far."""
    file = output / JOURNAL
    return file.read_bytes().count(b"\n") if file.exists() else 0


def test_killed_and_resumed_the_archive_and_the_shares_are_the_same(
    evolved: tuple[Path, SearchResult], llama_folder: Path, text_file: Path, tmp_path: Path
) -> None:
    folder, _ = evolved
    output, config = tmp_path / "run", tmp_path / "config.yaml"
    settings = json.loads((folder / "run.json").read_text())["settings"]
    del settings["model"], settings["calibration"], settings["search_text"]
    config.write_text(json.dumps(settings))
    texts = ("--calibration", text_file, "--search-text", text_file)
    first = ("search", llama_folder, *texts, "--config", config, "-o", output)
    for number, lines in enumerate((5, 40)):
        arguments = ("search", "--resume", output) if (output / "run.json").exists() else first
        process = Forked(*arguments, log=tmp_path / f"{number}")
        deadline = time.monotonic() + 60
        while time.monotonic() < deadline and written(output) < lines:
            time.sleep(0.005)
        process.kill()
    last = Forked("search", "--resume", output, log=tmp_path / "last")
    assert last.end() == 0, last.err.read_text()
    assert journal(output) == journal(folder)
    for name in ("best.json", "best_allocation.json", "hall_of_fame.json"):
        assert (output / name).read_bytes() == (folder / name).read_bytes()


@pytest.mark.parametrize(
    ("changed", "line"),
    [
        ({"metric": "wanda@owl"}, "wanda@owl: leave its allocation out"),
        ({"metric": "wanda+obs"}, "give METRIC[@SCOPE] alone, and its update as --update"),
        ({"metric": "wanda+refine"}, "give METRIC[@SCOPE] alone, and its update as --update"),
        ({"metric": "wnada"}, "did you mean 'wanda'?"),
        ({"allocation": "uniform"}, "--metric belongs to --allocation evolved"),
        ({"sparsity": None, "pattern": "2:4"}, "leave it out with --pattern"),
        ({"algorithm": "random"}, "--allocation evolved goes with no --algorithm random"),
        ({"seed_metrics": ["wanda"]}, "--metric wanda@matrix is not searched for: leave out"),
        ({"algorithm_settings": {"population": 4}}, "no setting 'population'"),
        ({"metric": None, "algorithm_settings": {"parents": 4}}, "no setting 'parents'"),
        ({"allocation": "evolve", "metric": None}, "did you mean 'evolved'?"),
    ],
)
def test_what_does_not_go_together_is_one_clear_line_and_writes_no_run(
    changed: dict[str, Any], line: str, llama_folder: Path, text_file: Path, tmp_path: Path
) -> None:
    with pytest.raises(PrunerZeroError) as refusal:
        run(llama_folder, tmp_path / "run", text_file, **{**SHARES, **changed})
    assert line in str(refusal.value)
    assert "\n" not in str(refusal.value)
    assert not (tmp_path / "run").exists()


def test_a_metric_is_searched_for_the_shares_of_a_file(
    evolved: tuple[Path, SearchResult], llama_folder: Path, text_file: Path, tmp_path: Path
) -> None:
    file = evolved[0] / "best_allocation.json"
    small: dict[str, Any] = {"evaluations": 20, "allocation": str(file)}
    result = run(llama_folder, tmp_path / "one", text_file, **small)
    assert {one.candidate.scope for one in result.records} == {"row", "block", "matrix"}
    run(llama_folder, tmp_path / "two", text_file, workers=2, **small)
    assert journal(tmp_path / "two") == journal(tmp_path / "one")
    plain = run(llama_folder, tmp_path / "plain", text_file, evaluations=20, scope="row")
    shared = run(llama_folder, tmp_path / "row", text_file, scope="row", **small)
    assert plain.records[0].evaluation.results != shared.records[0].evaluation.results
    changed = json.loads(file.read_text())["sparsity"]
    twins = [(name, name.replace(".0.", ".1.")) for name in changed if ".0." in name]
    first, second = next(pair for pair in twins if changed[pair[0]] != changed[pair[1]])
    changed[first], changed[second] = changed[second], changed[first]
    other = tmp_path / "other.json"
    other.write_text(json.dumps({"sparsity": changed}))
    with pytest.raises(PrunerZeroError, match="run of other settings: allocation, shares differ"):
        run(llama_folder, tmp_path / "one", text_file, **{**small, "allocation": str(other)})


def test_a_metric_under_shares_is_judged_as_pruning_by_them(
    build: Build, prose: str, tmp_path: Path
) -> None:
    found = Layout.of(find_matrices(tiny_model("llama")))
    file = tmp_path / "shares.json"
    file.write_text(found.allocation([0.4, -0.4, *[0.0] * 7], 0.5).to_json())
    evaluator = build(allocation=str(file), scope="row")
    pruned = tiny_model("llama")
    prune(
        pruned,
        "W * X",
        tokenizer=tiny_tokenizer(),
        calibration=[prose[: len(prose) // 2]],
        sparsity=0.5,
        allocation=str(file),
        mode="one-shot",
        windows=4,
        seqlen=16,
        cache=tmp_path / "other",
    )
    with torch.no_grad():
        wanted = tuple(float(next_token_loss(pruned, one[None])) for one in evaluator.windows)
    assert evaluator.run(Task(0, "all", "W * X", "row")).losses == wanted


@pytest.mark.parametrize(
    ("shares", "changed", "line"),
    [
        ({}, {}, "the allocation gives no sparsity for model.layers.0.self_attn.q_proj"),
        (None, {"scope": "global"}, "leaves no global scope, where all matrices compete"),
        (None, {"sparsity": 0.6}, "the allocation prunes 0.5 of the weights, not 0.6"),
        (None, {"sparsity": None, "pattern": "2:4"}, "leave it out with --pattern"),
        (None, {"metric": "wanda"}, "--metric belongs to --allocation evolved"),
    ],
)
def test_shares_that_cannot_be_obeyed_are_refused_before_any_work(
    shares: dict[str, float] | None,
    changed: dict[str, Any],
    line: str,
    llama_folder: Path,
    text_file: Path,
    tmp_path: Path,
) -> None:
    file = tmp_path / "shares.json"
    if shares is None:
        names = [matrix.name for matrix in find_matrices(tiny_model("llama"))]
        shares = dict.fromkeys(names, 0.5)
    file.write_text(json.dumps({"sparsity": shares}))
    with pytest.raises(PrunerZeroError) as refusal:
        run(llama_folder, tmp_path / "run", text_file, allocation=str(file), **changed)
    assert line in str(refusal.value)
    assert not (tmp_path / "run").exists()
