"""A built-in operator is one entry in one source file; a user's operator is an object."""

import os
import pickle
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from pruner_zero.metric.canonical.form import canonical, simplify_opposing
from pruner_zero.metric.expression import Call, Constant, Expression, Terminal
from pruner_zero.metric.latex import to_mathml
from pruner_zero.metric.metric import Metric
from pruner_zero.metric.operators import POWER, PRODUCT, Operator

ROOT = Path(__file__).parents[2]

USE = """
import numpy as np
from pruner_zero.evolution.variation import random_expression
from pruner_zero.evolution.space import SearchSpace
from pruner_zero.metric.grammar import parse
from pruner_zero.metric.operators import OPERATORS
from pruner_zero.metric.canonical.form import canonical
from tests.suites.operators import OperatorSuite

suite = OperatorSuite()
suite.operator = OPERATORS["cube"]
for claim in dir(suite):
    if claim.startswith("test_"):
        getattr(suite, claim)()
assert parse("cube(S + X)").latex == r"\\left|S + X\\right|^{3}"
assert canonical(parse("cube(W) * cube(X)"), "row") == parse("W * X")
space = SearchSpace(operators=("mul", "cube", "power"))
drawn = [random_expression(np.random.default_rng(seed), space) for seed in range(20)]
assert any("cube" in str(expression) for expression in drawn)
assert not space.allows(parse("cube(cube(W))"))
assert space.allows(parse("cube(cube(W) * X)"))
"""


def test_a_new_operator_is_one_entry_in_one_file(tmp_path: Path) -> None:
    page = (ROOT / "docs" / "operator.md").read_text()
    entry = re.search(r"```text\n(Operator\(.*?\),)\n```", page, re.DOTALL)
    assert entry
    source = shutil.copytree(ROOT / "src", tmp_path / "src")
    operators = source / "pruner_zero" / "metric" / "operators.py"
    text = operators.read_text()
    function = "def _cube(x: Tensor) -> Tensor:\n    return x.abs() ** 3\n\n\n"
    head, table, rest = text.partition("_EXTENDED = (\n")
    assert table
    operators.write_text(f"{head}{function}{table}    {entry[1]}\n{rest}")
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join([str(source), str(ROOT)])}
    subprocess.run([sys.executable, "-c", USE], env=environment, check=True, timeout=120)


def _softsign(x: torch.Tensor) -> torch.Tensor:
    return x / (1 + x.abs())


SOFT = Operator(
    *("soft", 1, _softsign),
    increasing="always",
    sign="keeps",
    parity="odd",
    latex=(r"\frac{#1}{1 + \left|#1\right|}", POWER),
)
BOTH = Operator("both", 2, torch.hypot, sign="nonnegative", degree=1, commutative=True)
TIMES = Operator("times", 2, torch.mul, infix=("*", PRODUCT))
LIFT = Operator("lift", 1, lambda x: x - x.min(), reach="matrix", increasing="always")
SHARE = Operator("share", 1, lambda x: x / x.abs().sum(), reach="matrix", rescaling="scale")
CUBE = Operator("cube", 1, lambda x: x.abs() ** 3, exponent=3)
CUBE_ROOT = Operator("root", 1, lambda x: x.abs() ** (1 / 3), exponent=1 / 3, inverse="cube")
W, G, X, S = (Terminal(name) for name in "WGXS")


def of(operator: Operator, *operands: Expression) -> Call:
    return Call(operator, operands)


def test_an_operator_of_the_user_scores_weights_also_in_another_process() -> None:
    metric = Metric.of(of(SOFT, W) * X)
    tensors = {"W": torch.tensor([[1.0, 3.0]]), "X": torch.tensor([[2.0, 1.0]])}
    for each in (metric, pickle.loads(pickle.dumps(metric))):
        torch.testing.assert_close(each.score(tensors), torch.tensor([[1.0, 0.75]]))
        assert (str(each), each.latex) == (
            "soft(W) * X",
            r"\frac{W}{1 + \left|W\right|} \cdot X",
        )


@pytest.mark.parametrize(
    ("given", "same"),
    [
        (of(BOTH, W * X, G), of(BOTH, G, X * W)),
        (of(SOFT, -S) * W, -of(SOFT, S) * W),
        (of(SOFT, W), W),
        (of(SHARE, W) * X, W * X),
        (of(SHARE, 3 * W) + G, of(SHARE, W) + G),
        (of(CUBE, W * X), W * X),
    ],
)
def test_the_facts_that_it_states_are_used(given: Expression, same: Expression) -> None:
    assert canonical(given, "row") == canonical(same, "row")


@pytest.mark.parametrize("given", [of(SOFT, G * W * X), of(BOTH, G, of(LIFT, -W))])
def test_facts_that_it_does_not_state_are_not_assumed(given: Expression) -> None:
    assert canonical(given, "row") == given


def test_it_undoes_another_one_and_is_shown_as_a_call_where_it_says_nothing_else() -> None:
    assert simplify_opposing(of(CUBE_ROOT, of(CUBE, W))) == W
    both, times = of(BOTH, W, G), of(TIMES, W, Constant(2))
    # The symbol is that of a built-in operator.
    assert (str(both), str(times)) == ("both(W, G)", "times(W, 2.0)")
    assert both.latex == r"\operatorname{both}(W, G)"
    assert ">both</mtext>" in to_mathml(both.latex)
    assert both.meanings()["both"] == "both(x, y)"
