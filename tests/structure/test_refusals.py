"""What cannot be removed is refused in one line, before any work."""

from typing import Any

import pytest

from pruner_zero.errors import PrunerZeroError
from pruner_zero.pruning.prune import prune
from tests.structure.test_units import HEADS
from tests.tiny import tiny_tokenizer
from tests.tiny_models import tiny_model

# The model and the settings of each kind; a metric is named where channels are chosen by masks.
KINDS: dict[str, tuple[str, int, dict[str, Any]]] = {
    "channels": ("llama", 2, {"metric": "wanda", "sparsity": 0.34}),
    "blocks": ("llama", 6, {"sparsity": 0.34}),
    "experts": ("mixtral", 2, {"sparsity": 0.25}),
}
CHANNELS: list[tuple[dict[str, Any], str]] = [
    ({"sparsity": None}, "--structure channels needs either --sparsity"),
    ({"parameters": 0.9}, "--structure channels needs either --sparsity"),
    ({"sparsity": None, "parameters": "most"}, "--parameters is 'most': write a share such as"),
    ({"structure": None, "parameters": 0.9}, "give it alone, or name one"),
    (
        {"sparsity": None, "parameters": "20K"},
        r"20,000 of 31,968 cannot .* MLP channels: choose --parameters 28896, the nearest",
    ),
    ({"pattern": "2:4"}, "leave out --pattern"),
    ({"scope": "matrix"}, "leave out --scope"),
    ({"exclude": ["*.0.*"]}, "leave out --exclude"),
    ({"structure": "neurons"}, "--structure neurons: choose one of"),
    ({"sparsity": 1.5}, r"sparsity 1\.5 is outside"),
    ({"sparsity": 0.95}, r"leaves 2\.4, .*: choose --sparsity 0\.3333, which leaves 32"),
    # A multiple of 32 leaves 32 or 48, and 48 is nearer.
    ({"sparsity": 0.01}, "choose --sparsity 0.3333, which leaves 32"),
    ({**HEADS, "sparsity": 0.2}, r"leaves 1\.6, and .*: choose --sparsity 0\.5"),
]
BLOCKS: list[tuple[dict[str, Any], str]] = [
    ({"metric": "wanda"}, "leave out --metric"),
    ({"update": "obs"}, "does not fit --structure: leave it out"),
    ({"sparsity": 0.05}, r"would drop 0: choose --sparsity 0\.1667"),
    ({"sparsity": 0.95}, r"would drop 6: choose --sparsity 0\.6667"),
    ({"sparsity": None, "parameters": "1K"}, "by removing blocks: choose --par"),
    ({"sparsity": None, "parameters": "1B"}, "by removing blocks: choose --par"),
]
EXPERTS: list[tuple[dict[str, Any], str]] = [
    ({"metric": "block-influence"}, "block-influence does not choose experts: whole blocks go"),
    ({"structure": "channels", "metric": "reap"}, "reap does not choose channels: whole"),
    ({"structure": None, "metric": "reap"}, "reap does not choose weights: whole blocks go by"),
    ({"update": "obs"}, "does not fit --structure: leave it out"),
    ({"offload": True}, "leave out --offload"),
    ({"sparsity": 0.0}, r"8 experts of a block leaves 8, .*: choose --sparsity 0\.125"),
    ({"sparsity": 0.9}, r"leaves 0\.8, and .*: choose --sparsity 0\.75, which leaves"),
    ({"sparsity": None, "parameters": "1K"}, "by removing experts: choose --par"),
    ({"sparsity": None, "parameters": "1B"}, "by removing experts: choose --par"),
]


@pytest.mark.parametrize(
    ("kind", "settings", "line"),
    [
        *[("channels", *case) for case in CHANNELS],
        *[("blocks", *case) for case in BLOCKS],
        *[("experts", *case) for case in EXPERTS],
    ],
)
def test_each_impossible_combination_is_refused_in_one_line(
    kind: str, settings: dict[str, Any], line: str, prose: str
) -> None:
    architecture, blocks, options = KINDS[kind]
    given = {"structure": kind, "windows": 3, "seqlen": 24, **options, **settings}
    model = tiny_model(architecture, blocks=blocks)
    with pytest.raises(PrunerZeroError, match=line) as caught:
        prune(model, calibration=[prose], tokenizer=tiny_tokenizer(), **given)
    assert "\n" not in str(caught.value)
