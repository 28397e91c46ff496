"""Methods as users write them: a metric, its comparison group, an update."""

import json
import time
from pathlib import Path
from typing import Any

import pytest

from pruner_zero.choices import Mode
from pruner_zero.errors import PrunerZeroError
from pruner_zero.metric.metric import Metric
from pruner_zero.pruning.notation import parse_recipe, split_methods
from pruner_zero.pruning.recipe import Recipe
from pruner_zero.structure.blocks import Blocks
from pruner_zero.structure.cut import Cut
from pruner_zero.structure.experts import Experts
from pruner_zero.structure.units import EqualWidths
from tests.pruning.conftest import recipe_of

EIGHTS = {"multiple_of": 8}
CHANNELS = EqualWidths(0.25, "channels", 8)


def expression_of(recipe: Recipe) -> str:
    """The expression of the metric of the masks."""
    assert recipe.metric is not None
    return str(recipe.metric.expression)


def refusal(text: str, **options: Any) -> str:
    with pytest.raises(PrunerZeroError) as raised:
        _ = parse_recipe(text, **options).order
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
    recipe = parse_recipe(f"{tree}@block+exact", sparsity=0.5)
    assert (expression_of(recipe), recipe.scope) == ("W * X", "block")
    assert parse_recipe(str(tree), sparsity=0.5).scope == "matrix"


@pytest.mark.parametrize("text", ["W" + "@" * 1_000_000 + ".json", "wanda@" + "a" * 1000 + ".json"])
def test_many_at_signs_are_refused_at_once(text: str) -> None:
    started = time.monotonic()
    assert refusal(text, sparsity=0.5)
    assert time.monotonic() - started < 10


@pytest.mark.parametrize(
    ("text", "options", "sweep"),
    [
        ("sparsegpt", {}, "obs"),
        ("sparsegpt", {"scope": "row"}, "obs"),
        ("sparsegpt", {"pattern": "2:4"}, "obs"),
        ("sparsegpt+exact", {}, "obs"),
        ("sqr(W) / sqr(D)+obs", {}, "obs"),
        ("sparsegpt@matrix", {}, None),
        ("wanda+obs", {}, None),
        ("sparsegpt-score", {}, None),
    ],
)
def test_the_sweep_chooses_by_formula_not_by_name(
    text: str, options: dict[str, Any], sweep: str | None
) -> None:
    assert recipe_of(text, **options).sweep == sweep


def test_sparsegpt_is_its_score_in_blocks_with_its_update(tmp_path: Path) -> None:
    recipe = recipe_of("sparsegpt")
    assert (recipe.scope, recipe.steps) == ("block", ("obs",))
    assert recipe.metric == Metric.of("sparsegpt-score")
    file = tmp_path / "tree.json"
    file.write_text('{"data": "W", "name": "sparsegpt-score"}')
    assert recipe_of(f"{file}+obs").sweep is None


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


@pytest.mark.parametrize(
    ("text", "mode", "order"),
    [
        ("wanda", "auto", "sequential"),
        ("wanda@global", "auto", "one-shot"),
        ("wanda@global", "one-shot", "one-shot"),
        ("wanda@global+refine", "auto", "sequential"),
        ("wanda@global+obs", "sequential", "sequential"),
        ("wanda@global+obs", "one-shot", "one-shot"),
        ("block-influence@blocks=0.25", "auto", "one-shot"),
    ],
)
def test_where_the_whole_model_decides_steps_can_follow_block_by_block(
    text: str, mode: Mode, order: str
) -> None:
    assert recipe_of(text, mode).order == order


def test_matrices_that_compete_cannot_be_pruned_one_after_the_other() -> None:
    with pytest.raises(PrunerZeroError, match="choose --mode one-shot or another --scope"):
        _ = recipe_of("wanda@global", "sequential").order
    with pytest.raises(PrunerZeroError, match=r"choose --mode one-shot$"):
        _ = recipe_of("block-influence@blocks=0.25", "sequential").order


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


@pytest.mark.parametrize(
    ("text", "options", "cut", "steps"),
    [
        ("W * X@channels=0.25", {"units": EIGHTS, "scope": "global"}, CHANNELS, ("exact",)),
        ("wanda", {"units": EIGHTS, "structure": "channels", "sparsity": 0.25}, CHANNELS, None),
        ("wanda@heads", {}, EqualWidths(0.5, "heads"), ("exact",)),
        ("wanda@heads=0.5+obs", {"pattern": "2:4"}, EqualWidths(0.5, "heads"), ("obs",)),
        ("block-influence@blocks=.1", {}, Blocks(0.1), ()),
        ("reap@experts=.25", {}, Experts(0.25), ()),
        ("wanda@experts=.25", {}, Experts(0.25, by_metric=True), ()),
    ],
    ids=str,
)
def test_whole_units_stand_where_weights_would_compete(
    text: str, options: dict[str, Any], cut: Cut, steps: tuple[str, ...] | None
) -> None:
    recipe = recipe_of(text, **options)
    assert recipe.cut == cut
    assert steps is None or recipe.steps == steps
    assert (recipe.metric is None) == (cut.rule is not None)


def test_blocks_go_by_their_influence_at_once() -> None:
    recipe = recipe_of("block-influence@blocks=.1")
    assert recipe.kinds == {"influence"}
    assert recipe.order == "one-shot"


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
    for metric in ("wanda", "wanda@global", "W * G@global"):
        assert refusal(f"{metric}+exakt", sparsity=0.5) == line
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
