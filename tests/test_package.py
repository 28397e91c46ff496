"""The public interface: light to import, complete, and clear about unknown names."""

import subprocess
import sys

import pytest

import pruner_zero


def test_importing_the_package_and_the_command_line_loads_no_torch() -> None:
    code = (
        "import sys, pruner_zero, pruner_zero.cli.app; print(pruner_zero.__version__);"
        "print(sorted({'torch', 'transformers', 'datasets'} & set(sys.modules)))"
    )
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert run.stdout.splitlines() == [pruner_zero.__version__, "[]"]


@pytest.mark.parametrize(
    "action",
    [
        "sys.argv[1:] = ['prune', 'm', '--sparsity', '0.5', '-o', 'o']; main()",
        "sys.argv[1:] = ['metric', 'list']; main()",
        "import pruner_zero.cache",
    ],
)
def test_windows_is_refused_in_one_line(action: str) -> None:
    code = (
        "import sys, filelock; sys.modules.update(fcntl=None, resource=None); import pruner_zero;"
        # On another system, the libraries of the command line cannot be imported as on Windows.
        f"from pruner_zero.cli.app import main; sys.platform = 'win32'; {action}"
    )
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    line = "Windows is not supported: run pruner-zero in WSL (Windows Subsystem for Linux)"
    assert run.stderr.splitlines()[-1].removeprefix("pruner_zero.errors.") in (
        f"error: {line}",
        f"PrunerZeroError: {line}",
    )
    assert (run.returncode, len(run.stderr.splitlines())) == (2, 1) or "cache" in action


def test_every_public_name_is_there() -> None:
    for name in pruner_zero.__all__:
        assert getattr(pruner_zero, name) is not None
    assert pruner_zero.Metric.of("wanda").name == "wanda"


def test_verbs_can_be_called_whatever_was_imported_before() -> None:
    for before in ("import sys", "import pruner_zero.evolution.build"):
        code = (
            f"{before}; from pruner_zero import compare, evaluate, prune, recover, search;"
            "print(all(map(callable, (compare, evaluate, prune, recover, search))));"
            "import pruner_zero; search is pruner_zero.search and search('x', output='y')"
        )
        run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
        assert run.stdout == "True\n"
        assert "PrunerZeroError" in run.stderr


def test_an_unknown_name_is_an_attribute_error() -> None:
    with pytest.raises(AttributeError, match="no attribute 'purne'"):
        _ = pruner_zero.purne
