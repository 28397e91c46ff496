"""A new built-in operator is one entry in one source file, as docs/operator.md says."""

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parents[2]

USE = """
import numpy as np
from pruner_zero.evolution.variation import random_expression
from pruner_zero.evolution.space import SearchSpace
from pruner_zero.metric.grammar import parse
from pruner_zero.metric.latex import to_latex
from pruner_zero.metric.operators import OPERATORS
from pruner_zero.metric.canonical.form import canonical
from tests.suites.operators import OperatorSuite

suite = OperatorSuite()
suite.operator = OPERATORS["cube"]
for claim in dir(suite):
    if claim.startswith("test_"):
        getattr(suite, claim)()
assert to_latex(parse("cube(S + X)")) == r"\\left|S + X\\right|^{3}"
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
