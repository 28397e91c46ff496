"""`compare` and `evaluate` give the same results on a machine with accelerators."""

from pathlib import Path
from typing import Any

import pytest

from pruner_zero import compare, evaluate
from pruner_zero.devices import CPU
from tests.elsewhere import HERE, THERE, elsewhere

SMALL: dict[str, Any] = {"sparsity": 0.5, "windows": 2, "seqlen": 16, "windows_eval": 2}


@pytest.fixture
def accelerated(monkeypatch: pytest.MonkeyPatch) -> None:
    """A machine that has two devices besides its CPU, with room for the model on either."""
    monkeypatch.setattr("pruner_zero.devices.present_devices", lambda: [HERE, THERE, CPU])
    monkeypatch.setattr("pruner_zero.models.load.place_model.__defaults__", (lambda _: 1 << 30,))


@pytest.mark.usefixtures("accelerated")
@pytest.mark.parametrize(("device", "used"), [(HERE, HERE), (THERE, THERE), ("auto", CPU)])
def test_the_table_is_the_same_wherever_it_is_made(
    device: Any, used: Any, llama_folder: Path, text_file: Path, tmp_path: Path
) -> None:
    def losses(cache: str, **options: Any) -> list[float]:
        texts: dict[str, Any] = {"calibration": text_file, "text": text_file}
        methods = "dense,magnitude,sparsegpt,wanda"
        table = compare(llama_folder, methods, **texts, cache=tmp_path / cache, **SMALL, **options)
        assert table.provenance["device"] == str(options.get("device", used))
        return [row["loss"] for row in table.rows]

    expected = losses("here", device="cpu")
    with elsewhere():
        actual = losses("there", **({} if device == "auto" else {"device": str(device)}))
    assert actual == pytest.approx(expected, rel=1e-3)


@pytest.mark.usefixtures("accelerated")
def test_perplexity_is_the_same_wherever_it_is_measured(
    llama_folder: Path, text_file: Path
) -> None:
    options: dict[str, Any] = {"seqlen": 16, "windows": 2}
    expected = evaluate(llama_folder, text_file, device="cpu", **options)
    with elsewhere():
        actual = evaluate(llama_folder, text_file, **options)
    assert actual.loss == pytest.approx(expected.loss, rel=1e-5)
