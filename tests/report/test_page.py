"""The page: whole, self-contained, honest about what is missing, safe with hostile names."""

import json
import os
import random
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest

from pruner_zero.errors import PrunerZeroError
from pruner_zero.metric.expression import TERMINALS
from pruner_zero.report.page import page, report
from pruner_zero.report.results import read_result
from tests.report.conftest import (
    JUDGED,
    ROWS,
    SETTINGS,
    WITH_SMALLER,
    Judged,
    pruned_row,
    write_comparison,
    write_evaluation,
    write_prune,
    write_recovery,
    write_search,
)
from tests.report.html import Page, check_self_contained

HOSTILE = "<script>alert('x')</script>\"' onload=\"x\" {{ 7 * 7 }} </style> &amp; \u202e"


def written(*paths: Path) -> Page:
    return Page(page([read_result(path) for path in paths], "pruner-zero report"))


def test_all_kinds_of_results_on_one_page(
    run: Path, pruned: Path, table: Path, tmp_path: Path
) -> None:
    parsed = written(run, pruned, table, write_evaluation(tmp_path / "measured.json"))
    check_self_contained(parsed)
    assert parsed.html.count("<!doctype html>") == 1
    assert [lead[:12] for lead in parsed.leads] == [
        *("Of 5 metrics", "37.50% of th", "Of 3 methods", "`models/prun")
    ]
    for heading in (
        "The winning metric",
        "Complexity and loss",
        "Where the zeros are",
        "Measured models",
        "The commands",
        "Provenance",
    ):
        assert parsed.text.count(heading) == 1, heading
    assert [label.split()[0] for label in parsed.figures] == (
        ["Pareto", "Lowest", "Share", "Perplexity"]
    )
    # The front, the comparison, perplexities, speeds, tasks.
    assert parsed.count("table") == 5
    assert "pruned 4 8,000" not in parsed.text
    assert "models/pruned 8,000 0 512.0 31.2 models/tiny 8,000" in parsed.text
    assert "models/pruned test.txt 4 16 44.50" in parsed.text
    assert "models/pruned arc_easy 0.5000 0.2500" in parsed.text


def test_a_recovery_is_a_curve_by_minutes_or_by_steps(tmp_path: Path) -> None:
    for timed, axis in (True, "minutes"), (False, "steps"):
        parsed = written(write_recovery(tmp_path / axis, timed))
        check_self_contained(parsed)
        assert parsed.leads == [
            "4 steps on `words.txt (first nine tenths)` took the loss of `models/pruned` on "
            "held-out text from 4.0000 to 3.5000 nats per token."
        ]
        curve = " ".join(parsed.figures["Loss on held-out text"].itertext())
        assert axis in curve
        assert "the model has the weights of step 4" in parsed.text


def test_letters_and_functions_are_explained(tmp_path: Path) -> None:
    run = write_search(tmp_path, [("W * mms(X)", "row", {"all": 3.0})])
    text = written(run).text
    assert f"W {TERMINALS['W'].meaning} X {TERMINALS['X'].meaning} mms (x - min) / (max" in text
    assert TERMINALS["O"].meaning not in text


def test_all_that_was_done_to_a_pruned_model_is_shown(tmp_path: Path) -> None:
    race = [{"metric": "W * X", "pattern": "50% per row", "divergence": 0.25}]
    curve = [{"step": 0, "validation_loss": 0.5}, {"step": 40, "validation_loss": 0.125}]
    text = written(write_prune(tmp_path / "pruned", race=race, distillation=curve)).text
    assert "mask: W * X (50% per row) order: one-shot" in text
    assert "W * X 50% per row 0.250" in text
    assert "took the divergence on windows held out from 0.500 to 0.125 nats per token" in text


def test_a_metric_is_shown_once(run: Path, tmp_path: Path) -> None:
    pruned = write_prune(tmp_path / "pruned", expression="W * G * X")
    table = write_comparison(tmp_path / "t.json", [pruned_row("mine", "W * G * X", "row", 3.0)])
    parsed = written(run, pruned, table)
    assert parsed.text.count("LaTeX") == 1
    assert "W * G * X , compared within rows; it is shown above." in parsed.text
    assert "The metric of" not in parsed.text
    assert "The metric of mine" in written(table).text


def test_several_results_say_why_a_metric_has_several_perplexities(run: Path, table: Path) -> None:
    reason = "The same metric can have several perplexities here"
    assert reason in written(run, table).text
    assert reason not in written(run).text


def test_provenance_is_folded(table: Path) -> None:
    html = written(table).html
    folded = html[html.index("<details>", html.index("Provenance")) :]
    assert "torch: &#39;2.13&#39;" in folded
    assert "torch" not in html[: -len(folded)]


def test_the_table_of_the_front_and_the_portrait_of_the_winner(run: Path) -> None:
    parsed = written(run)
    assert "W * G * X global best 9 3.8000 44.70" in parsed.text
    assert "W * X row knee 4 4.0000 54.60" in parsed.text
    assert "compared across the whole model" in parsed.text
    assert r"W \cdot G \cdot X" in parsed.text
    # The tree has a node for each of two products and three terminals.
    assert parsed.html.split('class="tree"')[1].split("</dl>")[0].count("<span>") == 5


def test_the_experts_of_a_mixture_are_one_kind(pruned: Path) -> None:
    file = pruned / "pruning.json"
    record = json.loads(file.read_text())
    for number, matrix in enumerate(record["matrices"]):
        matrix["name"] = f"layers.{matrix['block']}.experts.up[{number}]"
    file.write_text(json.dumps(record))
    heat_map = written(pruned).figures["Share of pruned weights by kind of matrix and block"]
    assert "experts.up[*]" in set(heat_map.itertext())


def test_the_table_of_a_comparison(table: Path) -> None:
    parsed = written(table)
    assert "mine global one-shot 50.00 50.00% 1.5 1.00 GiB" in parsed.text
    assert "ria row one-shot failed" in parsed.text
    assert "ria: no scores" in parsed.text
    assert "on 4 windows of 16 tokens of test.txt (consecutive, one stream" in parsed.text
    marked = [attributes for tag, attributes in parsed.elements if tag == "tr"]
    assert [row.get("class") for row in marked] == [None, None, None, "marked", None]


def test_a_comparison_with_smaller_models_shows_their_sizes(table: Path, tmp_path: Path) -> None:
    assert "parameters" not in written(table).text
    parsed = written(write_comparison(tmp_path / "smaller.json", WITH_SMALLER))
    assert "parameters" in parsed.text
    assert "block-influence@blocks one-shot 40.00 50.00% 1.5 1.00 GiB 9,000" in parsed.text
    # The masks failed, and what is best has no metric to show.
    rest = [*ROWS[3:], {**ROWS[1], "perplexity": None, "parameters": 10_000}, WITH_SMALLER[-1]]
    parsed = written(write_comparison(tmp_path / "rest.json", rest))
    assert "The only smaller model" in parsed.leads[0]
    assert "The metric of" not in parsed.text


def test_without_a_comparison_the_command_that_makes_one_is_shown(run: Path, table: Path) -> None:
    compares_the_best = re.compile("pruner-zero compare .*-o .*run/comparison.json")
    assert any(map(compares_the_best.match, written(run).commands))
    assert not any(map(compares_the_best.match, written(run, table).commands))


def test_a_search_that_has_only_begun(tmp_path: Path) -> None:
    runs: list[list[Judged]] = [[], [("W", "row", {})]]
    for judged in runs:
        parsed = written(write_search(tmp_path / str(len(judged)), judged, ended=False))
        assert "No metric that works has been found" in parsed.text
        assert "pruner-zero search --resume" in parsed.text
        assert not any(command.startswith("pruner-zero prune") for command in parsed.commands)
        assert parsed.figures == {}


def test_a_search_of_one_candidate(tmp_path: Path) -> None:
    parsed = written(write_search(tmp_path, [("W", "row", {"reconstruction": -1.0})]))
    assert "The knee of the front" not in parsed.text
    assert "W row knee, best 1 -1.0000" in parsed.text
    assert len(parsed.figures) == 2


def test_a_search_that_has_not_ended_says_so_and_how_it_continues(tmp_path: Path) -> None:
    run = write_search(tmp_path / "my run", JUDGED[4:], ended=False)
    text = written(run).text
    assert "metrics tried so far for" in text
    continued = f"To continue it: pruner-zero search --resume '{run}'"
    assert f"has not had its final race. {continued}" in text
    # Nothing was judged on text.
    assert "of which 1 reached 'reconstruction', the last rung" in text
    assert "complexity closed-form error perplexity W + X matrix" in text
    assert "has not had its final race" not in written(write_search(tmp_path / "b", JUDGED)).text


def test_removed_units_are_no_groups_of_a_pattern(tmp_path: Path) -> None:
    settings = {**SETTINGS, "metric": "wanda", "structure": "channels", "scope": None}
    words = "25% of the MLP channels of every block"
    pruned = write_prune(tmp_path / "pruned", settings=settings, pattern=words)
    text = written(pruned).text
    assert "compared as whole units" in text
    assert "Where weights were removed" in text
    assert "zeros" not in text
    settings |= {"structure": None}
    words_of_other: dict[str, Any] = {"pattern": "columns of a plug-in", "scope": None}
    other = write_prune(tmp_path / "other", settings=settings, **words_of_other)
    assert "compared within the groups of the pattern" in written(other).text
    row = {**WITH_SMALLER[4], "scope": None, "pattern": words}
    assert "compared as whole units" in written(write_comparison(tmp_path / "c.json", [row])).text
    row = {**row, "pattern": "2:4"}
    table = write_comparison(tmp_path / "c.json", [row])
    assert "compared within the groups of the pattern" in written(table).text


def test_results_without_a_figure_or_a_name_of_the_text(tmp_path: Path) -> None:
    parsed = written(write_comparison(tmp_path / "none.json", ROWS[3:]))
    assert parsed.figures == {}
    assert "failed" in parsed.text
    nothing = write_prune(tmp_path / "pruned", matrices=[], sparsity=0.0)
    assert "No matrix was pruned." in written(nothing).text
    unnamed = write_search(tmp_path / "run", calibration="(strings)")
    assert "given as strings in Python" in written(unnamed).text


def test_hostile_names_are_shown_as_text(tmp_path: Path) -> None:
    folder = tmp_path / HOSTILE.replace("/", "|")
    settings: dict[str, Any] = {"model": HOSTILE, "calibration": HOSTILE, "search_text": HOSTILE}
    run = write_search(folder, **settings)
    pruned = write_prune(tmp_path / "pruned")
    file = pruned / "pruning.json"
    record = json.loads(file.read_text())
    record["pattern"] = record["provenance"]["git"] = record["settings"]["metric"] = HOSTILE
    for matrix in record["matrices"]:
        matrix["name"], matrix["note"] = HOSTILE, HOSTILE
    file.write_text(json.dumps(record))
    rows = [{**row, "method": HOSTILE, "mode": HOSTILE, "notes": [HOSTILE]} for row in ROWS]
    rows[3]["error"] = HOSTILE
    table = write_comparison(tmp_path / "table.json", rows, text=HOSTILE, model=HOSTILE)
    plain = written(write_search(tmp_path / "run"), write_prune(tmp_path / "p"))
    parsed = written(run, pruned, table)
    check_self_contained(parsed)
    assert parsed.count("style") == plain.count("style") == 1
    assert "{{ 7 * 7 }}" in parsed.text
    assert "alert('x')" in parsed.text
    assert len(parsed.figures) == 4


def test_names_that_no_encoding_holds(tmp_path: Path) -> None:
    run = write_search(tmp_path / os.fsdecode(b"run\xff"), model="a\x00b\ud800c")
    text = report(run, tmp_path / "page.html").read_bytes().decode()
    assert "a\ufffdb\ufffdc" in Page(text).text


def test_a_large_search_is_a_small_page(tmp_path: Path) -> None:
    generator = random.Random(0)
    texts = ["W * X", "abs(W * W) * mms(G)", "W * sqrt(G) * X + exp(tanh(W)) * zsn(X * W)", "W + G"]
    judged: list[Judged] = []
    for _ in range(2000):
        loss = generator.uniform(3, 9)
        results = {"reconstruction": loss - 5, "few": loss + generator.uniform(0, 1), "all": loss}
        judged.append((generator.choice(texts), "row", results))
    html = page([read_result(write_search(tmp_path, judged, batch=500))], "")
    assert len(html.encode()) < 500_000
    assert "2,000 candidates" in html


def test_huge_expressions_are_cut_in_tables_and_not_drawn(tmp_path: Path) -> None:
    text = "W" + "".join(f" * zsn(X + {number})" for number in range(60))
    parsed = written(write_search(tmp_path, [*JUDGED, (text, "row", {"a": 1, "b": 2, "all": 1.0})]))
    assert len(parsed.html) < 500_000
    assert 'class="tree"' not in parsed.html


@pytest.mark.parametrize("order", [(0, 1), (1, 0)])
def test_parts_stand_in_the_order_of_the_inputs(order: Sequence[int], tmp_path: Path) -> None:
    paths = [write_search(tmp_path / "one"), write_search(tmp_path / "two")]
    text = written(*(paths[index] for index in order)).text
    places = [text.index(f"Search in {paths[index]}") for index in order]
    assert places == sorted(places)


def test_the_page_lies_in_the_first_folder(run: Path, pruned: Path, table: Path) -> None:
    assert report([table, pruned, run]) == pruned / "report.html"
    assert report(run) == run / "report.html"
    assert report(str(table)) == table.parent / "report.html"


def test_a_page_is_written_again_alike(run: Path, tmp_path: Path) -> None:
    first = report(run, tmp_path / "new" / "page.html")
    before = first.read_bytes()
    report([run, run], first)
    assert first.read_bytes() == before


def test_the_command_of_the_page_names_its_file(run: Path, tmp_path: Path) -> None:
    file = tmp_path / "my page.html"
    command = Page(report(run, file).read_text()).commands[-1]
    assert command == f"pruner-zero report {run} -o '{file}'"
    assert Page(report(run).read_text()).commands[-1] == f"pruner-zero report {run}"


def test_a_page_of_nothing_or_in_the_place_of_a_folder_is_refused(
    run: Path, tmp_path: Path
) -> None:
    with pytest.raises(PrunerZeroError, match="at least one"):
        report([])
    with pytest.raises(PrunerZeroError, match="is a folder: name a file"):
        report(run, tmp_path)
