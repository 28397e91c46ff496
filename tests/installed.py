"""Puts an installed distribution to work, away from the checkout: `python -m tests.installed`.

Checks that the package is the installed one and carries its types and templates, and runs the
program: its version, a prune of a tiny model, and a report of that.
"""

import subprocess
import sys
import tempfile
from pathlib import Path

import pruner_zero
from tests.tiny import tiny_tokenizer
from tests.tiny_models import tiny_model

PROGRAM = Path(sys.executable).with_name("pruner-zero")


def run(*arguments: object, folder: str) -> str:
    """The output of the program, which must exit with 0."""
    command = [str(PROGRAM), *map(str, arguments)]
    done = subprocess.run(command, cwd=folder, capture_output=True, text=True, check=False)
    assert done.returncode == 0, f"{command}: {done.stderr}"
    return done.stdout


def main() -> None:
    """Raise AssertionError where the distribution does not work."""
    package = Path(pruner_zero.__file__).parent
    assert package.is_relative_to(sys.prefix), f"{package} is not the installed one"
    assert (package / "py.typed").is_file()
    with tempfile.TemporaryDirectory() as folder:
        assert run("--version", folder=folder) == f"pruner-zero {pruner_zero.__version__}\n"
        tiny_model("llama").save_pretrained(Path(folder) / "model")
        tiny_tokenizer().save_pretrained(Path(folder) / "model")
        (Path(folder) / "text.txt").write_text("etaoin shrdlu " * 50)
        options = ["--sparsity", 0.5, "--windows", 2, "--seqlen", 16, "--cache", "cache"]
        output = run(
            "prune", "model", "--calibration", "text.txt", *options, "-o", "out", folder=folder
        )
        assert "50.00% of the weights of 14 matrices are zero" in output, output
        run("report", "out", "-o", "page.html", folder=folder)
        assert "<math" in (Path(folder) / "page.html").read_text()
    print(f"pruner-zero {pruner_zero.__version__} works on Python {sys.version.split()[0]}")


if __name__ == "__main__":
    main()
