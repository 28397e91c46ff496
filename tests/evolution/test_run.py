"""A whole search is deterministic, resumable and stoppable, and `prune` obeys its result."""

import json
import random
import shutil
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from pruner_zero.errors import PrunerZeroError
from pruner_zero.evolution.ask import BatchAlgorithm, Proposal
from pruner_zero.evolution.build import space_of
from pruner_zero.evolution.hall_of_fame import complexity
from pruner_zero.evolution.record import JOURNAL, Archive, SearchJournal
from pruner_zero.evolution.run import Status, run_batches, search
from pruner_zero.evolution.space import PUBLISHED_SPACE, SearchSpace
from pruner_zero.evolution.study import Study
from pruner_zero.metric.grammar import parse
from pruner_zero.metric.metric import Metric
from pruner_zero.models.language_model import LanguageModel
from pruner_zero.models.matrices import find_matrices
from pruner_zero.pruning.prune import prune
from pruner_zero.settings.search_settings import SearchSettings
from tests.conftest import save_tiny
from tests.evolution.conftest import tiny_settings
from tests.evolution.test_racing import Fake
from tests.processes import Forked
from tests.text.refusals import refusal

TINY: dict[str, Any] = {
    "sparsity": 0.5,
    "windows": 4,
    "seqlen": 16,
    "search_windows": 3,
    "workers": 1,
    "algorithm_settings": {"initial": 24, "batch": 16},
}


def run(folder: Path, output: Path, text: Path, **changed: Any) -> Study:
    settings = {**TINY, "evaluations": 40, **changed}
    return search(folder, calibration=text, search_text=text, output=output, **settings)


def same_however_it_ran(model: Path, text: Path, whole: Path, tmp: Path, **settings: Any) -> None:
    """Two workers, or an interruption and a second start, write the journal of the run `whole`."""
    run(model, tmp / "two", text, workers=2, **settings)
    assert journal(tmp / "two") == journal(whole)

    def interrupt(status: Status) -> None:
        if status.batch == 2:
            raise KeyboardInterrupt

    run(model, tmp / "stopped", text, observer=interrupt, **settings)
    assert journal(tmp / "stopped") != journal(whole)
    run(model, tmp / "stopped", text, **settings)
    assert journal(tmp / "stopped") == journal(whole)


def journal(folder: Path) -> list[dict[str, Any]]:
    """The lines of a run's journal without the values that depend on time."""
    lines = [json.loads(line) for line in (folder / JOURNAL).read_text().splitlines()]
    timed = ("seconds", "elapsed", "sha256")
    return [{k: v for k, v in line.items() if k not in timed} for line in lines]


@pytest.fixture(scope="module")
def undisturbed(
    llama_folder: Path, text_file: Path, tmp_path_factory: pytest.TempPathFactory
) -> Path:
    """A finished run that nothing disturbed."""
    output = tmp_path_factory.mktemp("runs") / "undisturbed"
    run(llama_folder, output, text_file)
    return output


def test_a_run_leaves_its_archive_and_its_best_in_the_released_form(undisturbed: Path) -> None:
    names = {path.name for path in undisturbed.iterdir()}
    wanted = {JOURNAL, "hall_of_fame.json", "best.json", "knee.json", "run.json"}
    assert wanted <= names
    tree = json.loads((undisturbed / "best.json").read_text())
    assert tree["scope"] in ("row", "block", "matrix", "global")
    hall = Study.open(undisturbed).hall_of_fame
    assert json.loads((undisturbed / "hall_of_fame.json").read_text()) == hall.to_rows()
    sizes = [complexity(record.candidate.expression) for record in hall.front]
    assert sizes == sorted(set(sizes))
    losses = [record.evaluation.value for record in hall.front]
    assert losses == sorted(losses, reverse=True)
    records = SearchJournal(undisturbed).records
    assert [record.candidate.number for record in records] == list(range(len(records)))
    judged = [
        record for record in records if record.evaluation.rung == 3 and record.evaluation.counts
    ]
    assert losses[-1] == min(record.evaluation.value for record in judged)


def test_the_best_tree_is_obeyed_with_its_scope(
    undisturbed: Path, llama_folder: Path, text_file: Path, tmp_path: Path
) -> None:
    metric = Metric.of(undisturbed / "best.json")
    result = prune(
        llama_folder,
        str(undisturbed / "best.json"),
        calibration=text_file,
        sparsity=0.5,
        windows=2,
        seqlen=16,
        output=tmp_path / "pruned",
    )
    assert result.metric.scope == metric.scope
    assert result.sparsity == pytest.approx(0.5, abs=0.01)


def test_another_seed_searches_elsewhere(
    undisturbed: Path, llama_folder: Path, text_file: Path, tmp_path: Path
) -> None:
    run(llama_folder, tmp_path / "run", text_file, seed=1)
    assert journal(tmp_path / "run") != journal(undisturbed)


def test_without_a_search_text_candidates_are_judged_on_the_other_half(
    undisturbed: Path, llama_folder: Path, text_file: Path, tmp_path: Path
) -> None:
    search(llama_folder, calibration=text_file, output=tmp_path / "run", evaluations=40, **TINY)
    explicit, default = (
        json.loads((folder / "run.json").read_text()) for folder in (undisturbed, tmp_path / "run")
    )
    for use in ("calibration", "search"):
        assert explicit[use] == default[use]
    assert default["calibration"]["text_sha256"] != default["search"]["text_sha256"]
    assert journal(tmp_path / "run")[1:] == journal(undisturbed)[1:]
    # Documents can be read only once.
    documents = iter([text_file.read_text()])
    result = search(
        llama_folder, calibration=documents, output=tmp_path / "once", evaluations=12, **TINY
    )
    assert result.best is not None


def test_no_strings_at_all_are_refused_as_an_empty_text(llama_folder: Path, tmp_path: Path) -> None:
    options: dict[str, Any] = {**TINY, "evaluations": 12, "output": tmp_path / "run"}
    line = refusal(lambda: search(llama_folder, calibration=[], **options))
    assert line == "corpus strings is empty: choose a text with words in it"


@pytest.mark.parametrize("texts", [{}, {"search_text": "self"}, {"calibration": "self"}])
def test_candidates_are_judged_on_the_next_text_of_the_model(
    texts: dict[str, str], llama_folder: Path, tmp_path: Path
) -> None:
    """Without a text the model writes it."""
    output = tmp_path / "run"
    options: dict[str, Any] = {**texts, "evaluations": 12}
    search(llama_folder, output=output, cache=tmp_path / "cache", **options, **TINY)
    description = json.loads((output / "run.json").read_text())
    assert description["calibration"]["text"] == "self"
    assert (
        description["search"]["text"]
        == f"self, from window {description['settings']['windows']} on"
    )
    assert description["calibration"]["tokens_sha256"] != description["search"]["tokens_sha256"]


def test_candidates_are_judged_on_several_texts(
    llama_folder: Path, text_file: Path, tmp_path: Path
) -> None:
    """So they are in the final race, on windows that follow the windows of the search."""
    second_text = tmp_path / "other.txt"
    second_text.write_text(text_file.read_text()[::-1])
    output = tmp_path / "run"
    options: dict[str, Any] = {**TINY, "evaluations": 12, "search_windows": 4, "final_windows": 4}
    texts = {str(text_file): 1, str(second_text): 3}
    search(llama_folder, calibration=text_file, search_text=texts, output=output, **options)
    description = json.loads((output / "run.json").read_text())
    for use in ("search", "final"):
        assert [source["windows"] for source in description[use]["sources"]] == [1, 3]
    assert description["search"]["tokens_sha256"] != description["final"]["tokens_sha256"]
    assert description["settings"]["search_text"] == texts


@pytest.mark.fault("SIGKILL at a random moment of search, prune, offloaded gradients, recover")
@pytest.mark.parametrize("kills", [3, pytest.param(20, marks=pytest.mark.slow)])
def test_killed_at_random_moments_and_resumed_the_archive_is_the_same(
    kills: int, undisturbed: Path, llama_folder: Path, text_file: Path, tmp_path: Path
) -> None:
    output = tmp_path / "run"
    config = tmp_path / "config.yaml"
    config.write_text(json.dumps({**TINY, "evaluations": 40}))
    first = ["search", llama_folder, "--calibration", text_file, "--search-text", text_file]
    first += ["--config", config, "-o", output]
    generator = random.Random(kills)
    for number in range(kills):
        arguments = ["search", "--resume", output] if (output / "run.json").exists() else first
        process = Forked(*arguments, log=tmp_path / f"{number}")
        before = (output / JOURNAL).stat().st_size if (output / JOURNAL).exists() else 0
        deadline = time.monotonic() + 60
        while time.monotonic() < deadline and process.process.is_alive():
            if (output / JOURNAL).exists() and (output / JOURNAL).stat().st_size > before:
                break
            time.sleep(0.005)
        time.sleep(generator.random() * 0.6)
        process.kill()
    last = Forked("search", "--resume", output, log=tmp_path / "last")
    assert last.end() == 0, last.err.read_text()
    assert journal(output) == journal(undisturbed)
    for name in ("hall_of_fame.json", "best.json"):
        assert (output / name).read_bytes() == (undisturbed / name).read_bytes()


@pytest.mark.fault("Ctrl-C")
def test_an_interruption_keeps_everything_and_resumes(
    undisturbed: Path, llama_folder: Path, text_file: Path, tmp_path: Path
) -> None:
    def interrupt(status: Status) -> None:
        if status.batch == 1:
            raise KeyboardInterrupt

    stopped = run(llama_folder, tmp_path / "run", text_file, observer=interrupt)
    assert stopped.stopped == "interrupted"
    assert (tmp_path / "run" / "best.json").exists()
    assert run(llama_folder, tmp_path / "run", text_file).stopped.endswith("evaluated")
    assert journal(tmp_path / "run") == journal(undisturbed)


@pytest.mark.fault("the model, a text or the configuration changes under an unfinished run")
@pytest.mark.parametrize(
    ("what", "named"),
    [
        ("model", "model_weights"),
        ("calibration", "calibration_tokens"),
        ("search text", "search_tokens, final_tokens"),
        ("configuration", "scope"),
    ],
)
def test_a_change_under_an_unfinished_run_is_named(
    what: str, named: str, text_file: Path, tmp_path: Path
) -> None:
    model, output = save_tiny(tmp_path / "model"), tmp_path / "run"
    calibration_text, search_text = tmp_path / "own.txt", tmp_path / "judged.txt"
    calibration_text.write_text(text_file.read_text())
    # This text differs, because one text for both uses would be halved.
    search_text.write_text(text_file.read_text().upper())
    settings = {
        **TINY,
        "evaluations": 12,
        "calibration": calibration_text,
        "search_text": search_text,
    }
    search(model, output=output, **settings)
    before = journal(output)
    if what == "model":
        save_tiny(model, seed=1)
    elif what == "configuration":
        settings["scope"] = "row"
    else:
        changed = calibration_text if what == "calibration" else search_text
        changed.write_text(text_file.read_text()[::-1])
    line = refusal(lambda: search(model, output=output, **settings))
    assert f"holds a run of other settings ({named} changed): choose another folder" in line
    assert journal(output) == before


def test_a_larger_budget_goes_on_where_the_smaller_ended(
    undisturbed: Path, llama_folder: Path, text_file: Path, tmp_path: Path
) -> None:
    run(llama_folder, tmp_path / "run", text_file, evaluations=24)
    assert len(journal(tmp_path / "run")) < len(journal(undisturbed))
    run(llama_folder, tmp_path / "run", text_file, evaluations=40)
    # The smaller budget ended in a final race of its own, which plays no part any more.
    race, other = (Study.open(folder).final_race for folder in (tmp_path / "run", undisturbed))
    assert race.to_rows() == other.to_rows()
    for name in ("best.json", "knee.json", "hall_of_fame.json"):
        assert (tmp_path / "run" / name).read_bytes() == (undisturbed / name).read_bytes(), name
    actual, wanted = (
        [line for line in journal(folder) if line.get("rung") != "final" and line["kind"] != "end"]
        for folder in (tmp_path / "run", undisturbed)
    )
    assert actual == wanted


@pytest.mark.parametrize("budget", [10, 30])
def test_no_more_candidates_are_judged_than_the_budget_says(
    budget: int, undisturbed: Path, llama_folder: Path, text_file: Path, tmp_path: Path
) -> None:
    """Not even where it ends inside a batch, whose rest a larger budget judges."""

    def judged(study: Study) -> list[str]:
        return [str(record.candidate.expression) for record in study.records]

    study = run(llama_folder, tmp_path / "run", text_file, evaluations=budget)
    assert judged(study) == judged(Study.open(undisturbed))[:budget]
    assert study.stopped == f"{budget} distinct candidates evaluated"
    study = run(llama_folder, tmp_path / "run", text_file, evaluations=40)
    assert len(study.records) == 40
    assert judged(study)[:24] == judged(Study.open(undisturbed))[:24]


def test_the_weights_are_hashed_once(
    llama_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Also where the model writes the texts for calibration, judging and the final race."""
    fingerprint, hashed = LanguageModel.fingerprint, []

    def noted(model: LanguageModel) -> str:
        hashed.append(model.name)
        return fingerprint(model)

    monkeypatch.setattr(LanguageModel, "fingerprint", noted)
    search(llama_folder, output=tmp_path / "run", cache=tmp_path, evaluations=4, **TINY)
    assert len(hashed) == 1


def test_the_best_is_applied_with_the_masks_that_the_search_judged(
    llama_folder: Path, text_file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """By statistics of the dense model; and from any folder."""
    monkeypatch.chdir(tmp_path)
    study = run(llama_folder, Path("run"), text_file, evaluations=12, scope="row", final_windows=0)
    of_inputs = [r for r in study.records if "X" in r.candidate.expression.terminals]
    study = replace(study, records=tuple(of_inputs))
    (tmp_path / "elsewhere").mkdir()
    monkeypatch.chdir("elsewhere")

    def zeros(metric: Any, **options: Any) -> list[Tensor]:
        asked = {"sparsity": 0.5, "windows": 4, "seqlen": 16, "cache": tmp_path, **options}
        asked |= {"reconstruct": 0, "distill": 0}
        pruned = prune(llama_folder, metric, calibration=text_file, **asked).language_model.model
        return [matrix.weight == 0 for matrix in find_matrices(pruned)]

    applied, judged = zeros(**study.prune_options), zeros(study.best)
    assert all(map(torch.equal, applied, judged))


def test_an_interrupted_resumption_leaves_the_files_of_the_finished_search(
    undisturbed: Path, llama_folder: Path, text_file: Path, tmp_path: Path
) -> None:
    """While batches are replayed, the first ones know less than the files."""

    def interrupt(status: Status) -> None:
        raise KeyboardInterrupt

    output = shutil.copytree(undisturbed, tmp_path / "run")
    names = ("best.json", "knee.json", "hall_of_fame.json")
    before = {name: (output / name).read_bytes() for name in names}
    study = run(llama_folder, output, text_file, evaluations=60, observer=interrupt)
    assert study.interrupted
    assert {name: (output / name).read_bytes() for name in names} == before
    assert Metric.of(output / "best.json") == study.best


def test_other_windows_of_the_final_race_are_refused(
    llama_folder: Path, text_file: Path, tmp_path: Path
) -> None:
    """Else candidates would be compared with each other on different windows."""
    search_text = tmp_path / "judged.txt"
    text = text_file.read_text().upper()
    search_text.write_text(text)
    settings = {**TINY, "evaluations": 12, "calibration": text_file, "search_text": search_text}
    study = search(llama_folder, output=tmp_path / "run", **settings)
    windows = study.windows["final"]
    search_text.write_text(text[: len(text) // 2] + text[len(text) // 2 :][::-1])
    changed = search(llama_folder, output=tmp_path / "other", **settings).windows["final"]
    assert changed["tokens_sha256"] != windows["tokens_sha256"]
    line = refusal(lambda: search(llama_folder, output=tmp_path / "run", **settings))
    assert "final_tokens" in line


@pytest.mark.parametrize("algorithm", ["published", "random"])
def test_the_other_algorithms_run_too(
    algorithm: str, llama_folder: Path, text_file: Path, tmp_path: Path
) -> None:
    small = {"published": {"population": 8, "parents": 4}, "random": {"batch": 16}}
    result = run(
        llama_folder,
        tmp_path / "run",
        text_file,
        algorithm=algorithm,
        evaluations=12,
        algorithm_settings={} if algorithm == "published" else small[algorithm],
    )
    assert result.hall_of_fame.best is not None
    if algorithm == "published":
        scopes = {record.candidate.scope for record in result.records}
        assert scopes == {"row"}


@pytest.mark.parametrize("size", [1, 10])
def test_candidates_without_a_new_mask_end_the_search_in_batches_of_any_size(
    size: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The batches of the published algorithm have one candidate."""

    class Repeating(BatchAlgorithm):
        def propose(self) -> list[Proposal]:
            return [Proposal(parse("W"), "row")] * size

    monkeypatch.setattr("pruner_zero.evolution.run._CANDIDATES_WITHOUT_NEWS", 20)
    settings, archive = tiny_settings(final_windows=0, evaluations=100), Archive(tmp_path, {})
    algorithm, fake = Repeating(SearchSpace(), 0), Fake({"W": 1.0})
    stopped = run_batches(algorithm, archive, fake, settings, tmp_path, lambda _: None)
    assert stopped == "nothing new among 20 candidates"
    assert len(archive.records) == 20 + size


def test_a_pattern_has_no_scopes_to_search(
    llama_folder: Path, text_file: Path, tmp_path: Path
) -> None:
    result = run(
        llama_folder, tmp_path / "run", text_file, sparsity=None, pattern="2:4", evaluations=12
    )
    assert {record.candidate.scope for record in result.records} == {"row"}


def test_a_search_space_that_has_nothing_more_to_offer_ends_the_search(
    llama_folder: Path, text_file: Path, tmp_path: Path
) -> None:
    result = run(
        llama_folder,
        tmp_path / "run",
        text_file,
        evaluations=1000,
        scope="row",
        space={"terminals": ("W", "X"), "operators": ("mul",), "max_size": 3},
    )
    assert result.stopped == "the search space is exhausted"
    assert 0 < len(result.records) < 10


def test_a_seed_metric_is_judged_first(llama_folder: Path, text_file: Path, tmp_path: Path) -> None:
    result = run(
        llama_folder,
        tmp_path / "run",
        text_file,
        seed_metrics=("wanda",),
        evaluations=5,
        scope="row",
    )
    assert "W * X" in {str(record.candidate.expression) for record in result.records[:24]}


@pytest.mark.parametrize(
    ("changed", "line"),
    [
        ({"evaluations": None}, "give a budget: --minutes 30 or --evaluations 1000"),
        ({"sparsity": 0.0}, "no weight becomes zero: choose a --sparsity above 0, such as 0.5"),
        ({"sparsity": None}, "give either --sparsity, such as 0.5, or --pattern, such as 2:4"),
        ({"algorithm": "genetic"}, "--algorithm is 'genetic'"),
        ({"evolutions": 3}, "no setting 'evolutions': did you mean 'evaluations'?"),
        ({"pattern": "2:5", "sparsity": None}, "not divisible by 5"),
        (
            {"pattern": "2:4", "sparsity": None, "scope": "global"},
            "--pattern 2:4 says which weights compete: leave out --scope",
        ),
        ({"space": {"max_size": 0}}, "`space: {max_size: 0}`: input should be greater"),
        ({"algorithm_settings": 3}, "`algorithm_settings: 3`: input should be"),
        ({"space": {"scopes": ["unit"]}}, "the scope unit of `space` is of units: add --structure"),
        ({"space": {"max_size": True}}, "max_size is true: it is no switch"),
        ({"algorithm_settings": {"batch": True}}, "batch is true: it is no switch"),
        (
            {"algorithm": "published", "space": {"operators": ["mul"]}},
            "the published algorithm has its own operators: leave it out of `space`",
        ),
    ],
)
def test_bad_settings_are_refused_in_one_line_and_write_no_run(
    changed: dict[str, Any], line: str, llama_folder: Path, text_file: Path, tmp_path: Path
) -> None:
    with pytest.raises(PrunerZeroError) as refusal:
        run(llama_folder, tmp_path / "run", text_file, **changed)
    assert line in str(refusal.value)
    assert "\n" not in str(refusal.value)


def test_a_folder_with_other_things_is_refused(
    llama_folder: Path, text_file: Path, tmp_path: Path
) -> None:
    (tmp_path / "notes.txt").write_text("mine")
    with pytest.raises(PrunerZeroError, match="not empty and holds no run"):
        run(llama_folder, tmp_path, text_file)


def test_a_search_over_vectors_of_gradients_collects_no_matrix_of_them(
    llama_folder: Path, text_file: Path, tmp_path: Path
) -> None:
    space = {"terminals": ["W", "X", "O"]}
    study = run(llama_folder, tmp_path / "run", text_file, space=space, cache=tmp_path / "cache")
    used = {name for record in study.records for name in record.candidate.expression.terminals}
    assert used == {"W", "X", "O"}
    assert list((tmp_path / "cache").glob("*/O-*"))
    assert not list((tmp_path / "cache").glob("*/G*"))
    options: dict[str, Any] = {"sparsity": 0.5, "windows": 4, "seqlen": 16}
    assert prune(llama_folder, study.best, calibration=text_file, **options).sparsity == 0.5


def test_the_published_algorithm_keeps_what_its_space_is_not_told() -> None:
    given = {"model": "m", "sparsity": 0.5, "evaluations": 1, "algorithm": "published"}
    settings = SearchSettings(**given, space={"terminals": ["W", "X"]})
    assert space_of(settings) == PUBLISHED_SPACE.model_copy(update={"terminals": ("W", "X")})
    assert space_of(SearchSettings(**settings.model_dump())) == space_of(settings)


@pytest.mark.parametrize("name", ["", "."])
def test_the_current_folder_is_no_run(
    name: str, llama_folder: Path, text_file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(PrunerZeroError, match="is the current folder"):
        run(llama_folder, Path(name), text_file)
    assert not list(tmp_path.iterdir())


def test_a_folder_that_cannot_be_written_is_refused_before_the_model_is_loaded(
    text_file: Path, tmp_path: Path
) -> None:
    (tmp_path / "file").write_text("")
    for output in (tmp_path / "file" / "run", tmp_path / ("x" * 300)):
        with pytest.raises(PrunerZeroError) as refusal:
            run(tmp_path / "no model", output, text_file)
        assert "no model" not in str(refusal.value)
