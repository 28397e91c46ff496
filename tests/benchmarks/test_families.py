"""The page of families says what the tests of each structure say."""

from collections.abc import Callable
from pathlib import Path
from types import ModuleType

import pytest

from tests.benchmarks.conftest import BENCHMARKS
from tests.structure import test_blocks, test_couplings, test_mixtures
from tests.tiny_models import ARCHITECTURES


def test_the_table_names_every_family_and_what_it_supports() -> None:
    lines = (BENCHMARKS / "families.md").read_text().splitlines()
    rows = [[cell.strip(" `") for cell in line.split("|")[1:-1]] for line in lines if "|" in line]
    header, _, *families = rows
    assert [name for name, *_ in families] == list(ARCHITECTURES)
    taken = {
        structure: {row[0] for row in families if row[place] == "yes"}
        for place, structure in enumerate(header)
        if place
    }
    supported = {
        **test_couplings.SUPPORTED,
        "blocks": test_blocks.SUPPORTED,
        "experts": test_mixtures.SUPPORTED,
    }
    assert taken == {structure: set(names) for structure, names in supported.items()}


@pytest.mark.parametrize(
    ("architecture", "structure", "outcome"),
    [
        ("gpt_neox", "channels", "yes"),
        ("llama4", "blocks", "some"),
        ("mixtral", "experts", "yes"),
        ("gpt2", "blocks", "even without weights it adds its biases to what passes through"),
    ],
)
def test_each_is_tried(
    architecture: str,
    structure: str,
    outcome: str,
    load_benchmark: Callable[[str], ModuleType],
    tmp_path: Path,
) -> None:
    assert load_benchmark("families").attempt(architecture, structure, tmp_path) == outcome
