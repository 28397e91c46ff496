"""The script for a GPU: every part runs on a CPU too, and the page says what was not there."""

import json
import math
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

from pruner_zero import prune
from pruner_zero.settings.prune import DEFAULT


@pytest.fixture
def gpu(load_benchmark: Callable[[str], ModuleType]) -> ModuleType:
    return load_benchmark("gpu")


@pytest.fixture
def settings(gpu: ModuleType, llama_folder: Path, text_file: Path) -> Any:
    return gpu.Settings(str(llama_folder), str(text_file), "cpu", 4, 16, minutes=0.03, rows=64)


def write(gpu: ModuleType, folder: Path, settings: Any, parts: dict[str, Any]) -> str:
    report = {"settings": gpu.asdict(settings), "parts": parts}
    gpu.write_page(report, "python benchmarks/gpu.py", folder / "gpu.md")
    return (folder / "gpu.md").read_text()


def test_methods_are_pruned_and_timed(gpu: ModuleType, settings: Any, tmp_path: Path) -> None:
    assert f"{DEFAULT['metric']}@global+refine+asymmetric+exact" in gpu.METHODS
    parts = {method: gpu.measure(method, settings) for method in gpu.METHODS}
    for row in parts.values():
        assert row["zeros"] == pytest.approx(0.5, abs=0.01)
        assert row["peak_rss_bytes"] > 0
        assert "peak_gpu_bytes" not in row
    page = write(gpu, tmp_path, settings, parts)
    assert all(
        f"| `{method}` | {row['seconds']:.1f} | none used |" in page
        for method, row in parts.items()
    )
    assert "Not measured yet: `wanda, 2:4`, " in page


def test_other_zeros_are_pruned_too(gpu: ModuleType, settings: Any) -> None:
    assert gpu.measure("default, 2:4", settings)["zeros"] == pytest.approx(0.5, abs=0.01)
    assert "failed" not in gpu.measure("wanda, a fifth of the channels", settings)


def test_products_are_timed_beside_the_dense_one(
    gpu: ModuleType, settings: Any, tmp_path: Path
) -> None:
    row = gpu.measure("products", settings)
    assert [product["tokens"] for product in row["products"]] == [1, 8, 64, 2048]
    assert all(product["half the rows"] > 0 for product in row["products"])
    # A CPU has no semi-structured kernels.
    assert row["without"].startswith("2:4 has no times: ")
    page = write(gpu, tmp_path, settings, {"products": row})
    assert "| tokens | dense, ms | half zero | half the rows |" in page
    assert row["without"] in page


def test_steps_of_a_recovery_are_timed(gpu: ModuleType, settings: Any, tmp_path: Path) -> None:
    row = gpu.measure("recover", settings)
    assert row["seconds_a_step"] > 0
    page = write(gpu, tmp_path, settings, {"recover": row})
    assert f"{row['seconds_a_step']} s for a step" in page


def test_selection_is_timed_in_two_shapes_by_every_pattern(
    gpu: ModuleType, settings: Any, tmp_path: Path
) -> None:
    row = gpu.measure("selection", settings)
    shapes = [kernel["shape"] for kernel in row["kernels"]]
    assert shapes == [[64, 64]] * 6 + [[64, 160]] * 6
    for kernel in row["kernels"]:
        scores = math.prod(kernel["shape"])
        reached = 5 * scores / (kernel["ms"] / 1e3) / (row["gigabytes_a_second"] * 1e9)
        assert kernel["share"] == pytest.approx(reached, rel=0.1, abs=1e-4)
    page = write(gpu, tmp_path, settings, {"selection": row})
    assert page.count("| 2:4 | 64 × 64 |") == 1
    assert f"{row['gigabytes_a_second']} GB/s" in page


def test_a_search_is_counted(gpu: ModuleType, settings: Any, tmp_path: Path) -> None:
    row = gpu.measure("search", settings)
    assert row["candidates"] > 0
    assert f"{row['per_minute']} candidates a minute" in write(
        gpu, tmp_path, settings, {"search": row}
    )


def test_the_page_says_where_there_was_no_gpu(
    gpu: ModuleType, settings: Any, tmp_path: Path
) -> None:
    numbers = {"seconds": 2.0, "peak_rss_bytes": 1 << 30, "zeros": 0.5}
    without = {**numbers, "provenance": {}}
    here = {**numbers, "peak_gpu_bytes": 3 << 30, "provenance": {"gpus": ["NVIDIA H100"]}}
    page = write(gpu, tmp_path, settings, {"wanda": without})
    assert "**No GPU was there.**" in page
    page = write(gpu, tmp_path, settings, {"wanda": here})
    assert "No GPU was there" not in page
    assert "Measured on NVIDIA H100." in page
    assert "| `wanda` | 2.0 | 3072 | 1024 |" in page
    page = write(gpu, tmp_path, settings, {"wanda": here, "sparsegpt": without})
    assert "No GPU was there for `sparsegpt`." in page
    page = write(gpu, tmp_path, settings, {"wanda": {**without, "device": "mps"}})
    assert "Measured on mps." in page


def test_the_command_goes_on_with_the_next_part(
    gpu: ModuleType, settings: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked = []

    def pretended(part: str, given: Any) -> dict[str, Any]:
        assert given == settings
        asked.append(part)
        return {"failed": "out of memory", "provenance": {}}

    monkeypatch.setattr(gpu, "apart", pretended)
    output, page = tmp_path / "gpu.json", tmp_path / "gpu.md"
    given = ["--model", settings.model, "--calibration", settings.calibration, "--device", "cpu"]
    given += ["--windows", "4", "--seqlen", "16", "--minutes", "0.03", "--rows", "64"]
    given += ["-o", str(output), "--page", str(page)]
    gpu.main([*given, "--at-most", "1"])
    gpu.main([*given, "--at-most", "1"])
    assert asked == ["wanda", "sparsegpt"]
    assert list(json.loads(output.read_text())["parts"]) == asked
    assert "`sparsegpt` has no numbers: out of memory." in page.read_text()
    gpu.main([*given, "--parts", "wanda", "--again"])
    assert asked == ["wanda", "sparsegpt", "wanda"]
    with pytest.raises(SystemExit):
        gpu.main([*given, "--seqlen", "32"])


def test_a_part_has_a_process_and_a_limit(gpu: ModuleType, settings: Any) -> None:
    row = gpu.apart("wanda", settings)
    assert row["zeros"] == 0.5
    assert gpu.apart("wanda", settings, 0.01)["failed"] == "not finished after 0.01 s"


def test_a_part_that_fails_says_why(gpu: ModuleType, settings: Any, tmp_path: Path) -> None:
    broken = gpu.Settings(**{**gpu.asdict(settings), "model": str(tmp_path / "none")})
    row = gpu.apart("wanda", broken)
    with pytest.raises(Exception) as told:  # noqa: PT011
        prune(broken.model, "wanda", sparsity=0.5, **broken.common)
    assert row["failed"] == f"{told.type.__name__}: {' '.join(str(told.value).split())}"
