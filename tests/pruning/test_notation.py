"""Methods as users write them: a metric, its comparison group, an update."""

import json
import time
from pathlib import Path
from typing import Any

import pytest

from pruner_zero.errors import PrunerZeroError
from pruner_zero.metric.metric import Metric
from pruner_zero.pruning.notation import parse_recipe, split_methods
from pruner_zero.structure.blocks import Blocks
from pruner_zero.structure.experts import Experts
from pruner_zero.structure.units import Structured


def refusal(text: str, **options: Any) -> str:
    with pytest.raises(PrunerZeroError) as raised:
        parse_recipe(text, **options).mode("auto")
    assert "\n" not in str(raised.value)
    return str(raised.value)


def test_the_scope_comes_from_the_text_then_the_setting_then_the_file(tmp_path: Path) -> None:
    file = tmp_path / "tree.json"
    file.write_text(
        '{"data": "mul", "left": {"data": "W"}, "right": {"data": "G"}, "scope": "matrix"}'
    )
    assert parse_recipe("wanda", sparsity=0.5).scope == "row"
    assert parse_recipe(str(file), sparsity=0.5).scope == "matrix"
    assert parse_recipe(str(file), sparsity=0.5, scope="block").scope == "block"
    assert parse_recipe(f"{file}@global", sparsity=0.5, scope="block").scope == "global"
    assert parse_recipe(str(file), pattern="2:4").scope is None


def test_a_folder_of_a_tree_file_may_have_an_at_in_its_name(tmp_path: Path) -> None:
    tree = tmp_path / "a@b" / "tree.json"
    tree.parent.mkdir()
    tree.write_text(json.dumps({**Metric.of("wanda").to_tree(), "scope": "matrix"}))
    method = parse_recipe(f"{tree}@block+exact", sparsity=0.5)
    assert (str(method.metric.expression), method.scope) == ("W * X", "block")
    assert parse_recipe(str(tree), sparsity=0.5).scope == "matrix"


@pytest.mark.parametrize("text", ["W" + "@" * 1_000_000 + ".json", "wanda@" + "a" * 1000 + ".json"])
def test_many_at_signs_are_refused_at_once(text: str) -> None:
    started = time.monotonic()
    assert refusal(text, sparsity=0.5)
    assert time.monotonic() - started < 10


def test_sparsegpt_is_its_score_in_blocks_with_its_update() -> None:
    method = parse_recipe("sparsegpt", sparsity=0.5)
    assert (method.scope, method.steps) == ("block", ("obs",))
    assert method.metric.name == "sparsegpt-score"
    assert method.chooser
    assert parse_recipe("sparsegpt", sparsity=0.5, scope="row").chooser
    assert parse_recipe("sparsegpt", pattern="2:4").chooser
    assert parse_recipe("sparsegpt+exact", sparsity=0.5).chooser
    assert not parse_recipe("sparsegpt@matrix", sparsity=0.5).chooser
    assert not parse_recipe("wanda+obs", sparsity=0.5).chooser
    assert not parse_recipe("sparsegpt-score", sparsity=0.5).chooser


def test_the_sweep_chooses_by_formula_not_by_name(tmp_path: Path) -> None:
    file = tmp_path / "tree.json"
    file.write_text('{"data": "W", "name": "sparsegpt-score"}')
    assert not parse_recipe(f"{file}+obs", sparsity=0.5).chooser
    assert parse_recipe("sqr(W) / sqr(D)+obs", sparsity=0.5).chooser


def test_spaces_do_not_matter() -> None:
    method = parse_recipe(" W * X @ global +obs ", sparsity=0.5)
    assert method.metric == Metric.of("W * X")
    assert (method.scope, method.steps) == ("global", ("obs",))


@pytest.mark.parametrize(
    ("text", "steps"),
    [
        ("wanda", ()),
        ("wanda+refine", ("refine",)),
        ("wanda@block+refine+obs", ("refine", "obs")),
        ("wanda + obs", ("obs",)),
        ("wanda+exact", ("exact",)),
        ("wanda+exact+refine", ("refine", "exact")),
        ("abs(W) + X+refine+exact", ("refine", "exact")),
        ("sparsegpt+refine", ("refine", "obs")),
        ("sparsegpt@row+exact", ("exact",)),
        ("wanda+refine+refine", ("refine",)),
    ],
)
def test_steps_after_the_mask(text: str, steps: tuple[str, ...]) -> None:
    method = parse_recipe(text, sparsity=0.5)
    assert method.steps == steps
    assert method.name == text


def test_settings_say_what_the_text_leaves_open() -> None:
    def steps(text: str, **options: Any) -> tuple[str, ...]:
        return parse_recipe(text, sparsity=0.5, **options).steps

    assert steps("wanda", update="exact", refine=True) == ("refine", "exact")
    assert steps("wanda+obs", update="obs") == ("obs",)
    assert steps("sparsegpt", update="none") == ()
    assert steps("sparsegpt+none") == steps("wanda+none") == ()
    assert steps("sparsegpt+refine+none") == ("refine",)
    assert steps("wanda+exact", update="exact") == ("exact",)
    assert steps("wanda", update="refine") == ("refine",)
    assert steps("sparsegpt", update="exact") == ("exact",)
    assert refusal("wanda", sparsity=0.5, update="exacct") == (
        "--update exacct is unknown: did you mean 'exact'?"
    )
    assert refusal("wanda+obs", sparsity=0.5, update="exact") == (
        "wanda+obs names its update: leave out --update exact, or +obs"
    )
    assert refusal("wanda+obs+exact", sparsity=0.5) == (
        "wanda+obs+exact names 2 updates: keep one of them"
    )


def test_distillation_ends_the_text_of_a_method() -> None:
    method = parse_recipe(" wanda+refine + exact +distill = 40 ", sparsity=0.5)
    assert (method.steps, method.distill) == (("refine", "exact"), 40)
    assert parse_recipe("wanda@channels=0.25+distill=3", sparsity=0.5).distill == 3
    assert parse_recipe("wanda", sparsity=0.5).distill == 0
    assert parse_recipe("wanda", sparsity=0.5, distill=2).distill == 2
    assert parse_recipe(method.name, sparsity=0.5, distill=40) == method
    for steps in (0, 3):
        assert refusal("wanda+distill=40", sparsity=0.5, distill=steps) == (
            f"wanda+distill=40 names +distill=40: leave it out, or --distill {steps}"
        )
    assert refusal("wanda+distill", sparsity=0.5) == (
        "wanda+distill: say how many steps of distillation, as in +distill=40"
    )


@pytest.mark.parametrize(
    ("text", "kinds"),
    [
        ("magnitude", set()),
        ("wanda", {"X"}),
        ("pruner-zero", {"G"}),
        ("gblm", {"X", "G"}),
        ("sparsegpt-score", {"gram"}),
        ("pruner-zero+obs", {"G", "gram"}),
        ("sparsegpt", {"gram"}),
        ("magnitude+refine", {"gram"}),
        ("wanda+exact", {"X", "gram", "tokens"}),
        ("wanda+refine+exact", {"X", "gram", "tokens"}),
        ("wanda+refine+obs", {"X", "gram"}),
    ],
)
def test_only_what_the_method_needs_is_collected(text: str, kinds: set[str]) -> None:
    assert parse_recipe(text, sparsity=0.5).kinds == kinds


def test_matrices_that_compete_cannot_be_pruned_one_after_the_other() -> None:
    method = parse_recipe("wanda@global", sparsity=0.5)
    assert method.mode("auto") == method.mode("one-shot") == "one-shot"
    with pytest.raises(PrunerZeroError, match="choose --mode one-shot or another --scope"):
        method.mode("sequential")
    blocks = parse_recipe("block-influence@blocks=0.25")
    with pytest.raises(PrunerZeroError, match=r"choose --mode one-shot$"):
        blocks.mode("sequential")
    assert parse_recipe("wanda", sparsity=0.5).mode("auto") == "sequential"
    for follows in ("+refine", "+obs"):
        method = parse_recipe(f"wanda@global{follows}", sparsity=0.5)
        assert method.mode("auto") == method.mode("sequential") == "sequential"
        assert method.mode("one-shot") == "one-shot"


def test_either_a_share_or_a_pattern_decides_how_much() -> None:
    assert refusal("wanda") == "give either --sparsity, such as 0.5, or --pattern, such as 2:4"
    assert refusal("wanda", sparsity=0.5, pattern="2:4") == refusal("wanda")
    assert "write N:M such as 2:4, or give a share as --sparsity" in refusal("wanda", pattern="0.5")
    assert "0 < N < M" in refusal("wanda", pattern="4:4")
    assert "outside [0, 1)" in refusal("wanda", sparsity=1.0)
    assert "outside [0, 1)" in refusal("wanda", sparsity=-0.1)
    assert "0.5 for 50 %" in refusal("wanda", sparsity=50)
    assert "outside [0, 1)" in refusal("wanda", sparsity=float("nan"))


def test_groups_inside_rows_leave_no_other_scope() -> None:
    assert "leave out scope 'global'" in refusal("wanda@global", pattern="2:4")
    assert "leave out scope 'matrix'" in refusal("wanda", pattern="2:4", scope="matrix")
    assert parse_recipe("wanda", pattern="2:4", scope="row").scope is None


def test_whole_units_stand_where_weights_would_compete() -> None:
    method = parse_recipe(
        "W * X@channels=0.25", sparsity=0.5, units={"multiple_of": 8}, scope="global"
    )
    assert method.pattern == Structured(0.25, "channels", 8)
    assert (str(method.metric.expression), method.steps) == ("W * X", ("exact",))
    assert parse_recipe("wanda@heads", sparsity=0.5).pattern == Structured(0.5, "heads")
    assert parse_recipe("wanda@heads=0.5+obs", pattern="2:4").steps == ("obs",)
    method = parse_recipe("block-influence@blocks=.1")
    assert method.pattern == Blocks(0.1)
    assert method.kinds == {"influence"}
    assert method.mode("auto") == "one-shot"
    assert parse_recipe("reap@experts=.25").pattern == Experts(0.25)
    assert parse_recipe("wanda@experts=.25").pattern == Experts(0.25, by_metric=True)
    assert not parse_recipe("wanda@experts=.25").steps
    options: dict[str, Any] = {"structure": "channels", "units": {"multiple_of": 8}}
    option = parse_recipe("wanda", sparsity=0.25, **options)
    assert option.pattern == Structured(0.25, "channels", 8)


def test_settings_that_do_not_go_with_whole_units_are_refused() -> None:
    def refused(text: str, **options: Any) -> str:
        return refusal(text, **{"sparsity": 0.5, **options})

    assert "which share of its units goes" in refused("wanda@heads", sparsity=None)
    assert "which share of its units goes" in refused("wanda@heads=half")
    assert "outside [0, 1)" in refused("wanda@heads=1.5")
    assert "wanda does not choose blocks" in refused("wanda@blocks")
    assert "block-influence does not choose heads" in refused("block-influence@heads")
    assert "block-influence does not choose weights" in refused("block-influence")
    assert "reap does not choose blocks" in refused("reap@blocks")
    assert "leave out @heads" in refused("wanda@heads", structure="heads")
    assert "+refine has nothing to do" in refused("wanda@heads+refine")
    assert "+exact has nothing to do" in refused("block-influence@blocks+exact")
    assert "keep one scope" in refused("wanda@heads@row")
    assert "did you mean 'heads'" in refused("wanda@head=0.5")


def test_near_names_are_named() -> None:
    assert "did you mean 'wanda'?" in refusal("wnada", sparsity=0.5)
    line = "unknown step 'exakt': did you mean 'exact'?"
    assert refusal("wanda@global+exakt", sparsity=0.5) == line
    assert refusal("sparsegpt+exakt+refine", sparsity=0.5) == line
    assert "did you mean 'global'?" in refusal("wanda@gobal", sparsity=0.5)
    assert "unknown scope 'Global'" in refusal("wanda@Global", sparsity=0.5)
    assert "unknown scope 'owl'" in refusal("wanda@owl", sparsity=0.5)
    assert "keep one scope" in refusal("wanda@row@block", sparsity=0.5)


def test_commas_inside_parentheses_do_not_split() -> None:
    assert split_methods("dense, wanda ,max(W, G)@global,quotient(W,max(X,1))+obs") == [
        "dense",
        "wanda",
        "max(W, G)@global",
        "quotient(W,max(X,1))+obs",
    ]


def test_commas_in_double_quotes_do_not_split() -> None:
    text = 'dense,"my runs, old/best.json"+refine,max(W,G)'
    assert split_methods(text) == ["dense", "my runs, old/best.json+refine", "max(W,G)"]
    assert split_methods('"a(b.json",wanda,"c).json"') == ["a(b.json", "wanda", "c).json"]


@pytest.mark.parametrize("text", ["", "wanda,", ",wanda", "wanda,,ria", " , "])
def test_an_empty_name_in_the_list_is_refused(text: str) -> None:
    with pytest.raises(PrunerZeroError, match="an empty name in the list of methods"):
        split_methods(text)
