"""Help is instant and complete, and what can be typed changes only on purpose."""

from __future__ import annotations

import statistics
import subprocess
import sys
import time
import warnings
from pathlib import Path

import cli_helpers
import pytest

import gvbsm
from gvbsm.cli.main import main
from gvbsm.stages import STAGES

FLAGS = Path(__file__).with_name("flags.txt")


def seconds(command: list[str]) -> float:
    """Return the median time of three runs."""
    times = []
    for _ in range(3):
        started = time.perf_counter()
        subprocess.run(command, check=True, capture_output=True, env=cli_helpers.environment())
        times.append(time.perf_counter() - started)
    return statistics.median(times)


def test_help_is_instant() -> None:
    bare = seconds([sys.executable, "-c", "pass"])
    # On a machine so busy that even an empty program is slow, 0.3 s says nothing of ours.
    assert seconds(cli_helpers.command("--help")) < max(0.3, 8 * bare)


@pytest.mark.parametrize("arguments", [["--help"], ["--version"], ["run", "--help"], ["evaluation", "-h"]])
def test_help_imports_neither_torch_nor_a_plugin(arguments: list[str]) -> None:
    code = (
        "import sys\nfrom gvbsm.cli.main import main\n"
        f"main({arguments!r}, standalone_mode=False)\n"
        "print(sorted({'torch', 'torchvision', 'timm', 'sklearn', 'pydantic', 'pluggy', 'rich',"
        " 'gvbsm_registry', 'gvbsm_plugins'} & set(sys.modules)), file=sys.stderr)"
    )
    result = subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True)
    assert result.stderr == "[]\n"


def test_importing_the_package_does_not_import_torch() -> None:
    code = "import sys, gvbsm; gvbsm.__version__; print('torch' in sys.modules)"
    result = subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True)
    assert result.stdout == "False\n"


@pytest.mark.parametrize("name", sorted(main.commands))
def test_every_command_explains_itself(name: str) -> None:
    shown = cli_helpers.done(name, "--help").stdout
    assert f"\n  {name} " in cli_helpers.done("--help").stdout
    for parameter in main.commands[name].params:
        for flag in parameter.opts:
            if flag.startswith("-"):
                assert flag in shown
                assert getattr(parameter, "help", None), f"{name} {flag} has no help"


def test_version() -> None:
    assert gvbsm.__version__ in cli_helpers.done("--version").stdout


def test_commands_and_flags_are_the_recorded_ones() -> None:
    assert cli_helpers.flags() == FLAGS.read_text(encoding="utf-8"), (
        "The commands or flags have changed. If that is meant (say so in CHANGELOG), record them anew:\n"
        "    python tests/helpers/cli_helpers.py > tests/cli/flags.txt"
    )


def test_the_flags_of_the_design_exist() -> None:
    recorded = FLAGS.read_text(encoding="utf-8").splitlines()
    flags = "recipe --ipc --matcher --backbone --regularizer --set --data --out --store --device --seed"
    for flag in flags.split(" "):
        assert any(line.startswith(f"run {flag} ") for line in recorded), flag
    for stage in STAGES:
        assert f"{stage} out path" in recorded


@pytest.mark.parametrize(("old", "new"), [("synthesize", "synthesis"), ("evaluate", "evaluation")])
def test_an_old_command_says_what_it_is_called(old: str, new: str) -> None:
    line = cli_helpers.refused(cli_helpers.invoke(old, "out"))
    assert line == f"gvbsm: unknown command {old!r}; it is called {new}\n"


def test_commands_recipe_and_pipeline_call_the_stages_alike() -> None:
    from gvbsm.recipe.schema import Recipe

    assert [name for name in Recipe.model_fields if name in main.commands] == list(STAGES)


def test_store_is_one_option() -> None:
    options = {
        name: (repr(parameter.type), parameter.metavar, getattr(parameter, "help", ""))
        for name, command in main.commands.items()
        for parameter in command.params
        if parameter.name == "store"
    }
    assert {"run", *STAGES, "report", "estimate", "compare", "sweep", "import"} == set(options)
    assert len(set(options.values())) == 1


def test_python_m_gvbsm() -> None:
    command = [sys.executable, "-m", "gvbsm", "--version"]
    shown = subprocess.run(command, check=True, capture_output=True, text=True).stdout
    assert shown == f"gvbsm, version {gvbsm.__version__}\n"


def test_a_wrong_flag_is_a_usage_error() -> None:
    result = cli_helpers.invoke("run", "--matchr", "bn")
    assert result.exit_code == 2
    assert "--matcher" in result.stderr
    assert "Traceback" not in result.stderr


def test_a_warning_is_a_line_without_code() -> None:
    with main.make_context("gvbsm", ["plugins"]) as context:
        context.invoke(main.callback, no_plugins=False)
        assert warnings.formatwarning("told", UserWarning, "a file", 1) == "warning: told\n"
        assert "a file:1: Deprec" in warnings.formatwarning("of code", DeprecationWarning, "a file", 1)
    assert "a file:1: User" in warnings.formatwarning("told", UserWarning, "a file", 1)
