"""Wheels of gvbsm and of the examples in a fresh virtual environment: what a user does, in order."""

from __future__ import annotations

import json
import zipfile
from pathlib import Path

import pytest
from venvs import ROOT, Venv, wheel

EXAMPLES = ROOT / "examples"
SHRUNK = (
    "--backbone convnet:width=8,depth=1 --set pretrain.epochs=2 --set synthesis.iterations=4 "
    "--set relabel.epochs=2 --set evaluation.epochs=2 --set 'evaluation.seeds=[0]' "
    "--set evaluation.full_baseline=false --device cpu --quiet"
)

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def wheels(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    folder = tmp_path_factory.mktemp("wheels")
    projects = [ROOT, *(EXAMPLES / name for name in ("gvbsm-gram", "gvbsm-prism", "gvbsm-vit"))]
    return {"gvbsm" if p == ROOT else p.name: wheel(p, folder) for p in projects}


@pytest.fixture(scope="module")
def venv(wheels: dict[str, Path], tmp_path_factory: pytest.TempPathFactory) -> Venv:
    made = Venv(tmp_path_factory.mktemp("venv") / "env")
    made.run(f"pip install {' '.join(map(str, wheels.values()))}", ROOT.parent)
    return made


def test_the_wheel_holds_all_packages_and_their_data(wheels: dict[str, Path]) -> None:
    names = set(zipfile.ZipFile(wheels["gvbsm"]).namelist())
    copy = wheels["gvbsm"].parents[1] / f"source-{ROOT.name}"
    for room, place in (("gvbsm", "."), ("gvbsm_registry", "registry"), ("gvbsm_plugins", "plugins")):
        folder = copy / place / room
        for path in folder.rglob("*"):
            if path.is_file() and "__pycache__" not in path.parts:
                assert f"{room}/{path.relative_to(folder)}" in names


def test_a_third_partys_matcher_runs_and_is_missed(
    venv: Venv, wheels: dict[str, Path], tmp_path: Path
) -> None:
    listed = json.loads(venv.run("gvbsm plugins --json", tmp_path).stdout)
    added = {
        r["distribution"]: [c["name"] for c in r["components"]]
        for r in listed
        if r["plugin"] in ("gram", "vit")
    }
    assert added == {"gvbsm-gram": ["gram", "gram_diversity"], "gvbsm-vit": ["token_norm", "vit_tiny"]}
    assert [problem for record in listed for problem in record["problems"]] == []

    run = f"gvbsm run digits --matcher bn --matcher gram --out out {SHRUNK}"
    # A convnet has no BatchNorm: gram alone matches, and its term is in the log.
    venv.run(run, tmp_path)
    events = [json.loads(line) for line in (tmp_path / "out/log.jsonl").read_text().splitlines()]
    steps = [event for event in events if event["event"] == "step" and event["stage"] == "synthesis"]
    assert steps
    assert all(event["values"]["gram"] > 0 for event in steps)
    assert 'use = "gram"' in (tmp_path / "out/recipe.toml").read_text()

    venv.run("pip uninstall -y gvbsm-gram", tmp_path)
    refused = venv.run(
        f"gvbsm run digits --matcher bn --matcher gram --out other {SHRUNK}", tmp_path, check=False
    )
    assert refused.returncode == 2
    assert "unknown matcher 'gram'" in refused.stderr
    assert "available: bn, conv_channel, conv_patch, token_norm" in refused.stderr
    assert len(refused.stderr.strip().splitlines()) == 1
    assert not (tmp_path / "other").exists()
    venv.run(f"pip install {wheels['gvbsm-gram']}", tmp_path)


def test_no_plugins_refuses_a_third_partys_matcher(venv: Venv, tmp_path: Path) -> None:
    refused = venv.run(f"gvbsm --no-plugins run digits --matcher gram {SHRUNK}", tmp_path, check=False)
    assert refused.returncode == 2
    assert "left out by GVBSM_PLUGINS or --no-plugins: gram" in refused.stderr
    assert "available: bn" in venv.run("GVBSM_PLUGINS=gvbsm gvbsm run --matcher x; true", tmp_path).stderr


def test_a_third_partys_method_is_listed_and_runs(venv: Venv, tmp_path: Path) -> None:
    assert "prism" in venv.run("gvbsm methods", tmp_path).stdout
    assert "population" in venv.run("gvbsm methods prism", tmp_path).stdout
    second = "--backbone convnet:width=8,depth=1 --backbone wrn_16_2"
    venv.run(f"gvbsm run digits --method prism {second} --out out {SHRUNK}", tmp_path)
    assert 'use = "prism"' in (tmp_path / "out/recipe.toml").read_text()


@pytest.mark.parametrize("example", ["gvbsm-gram", "gvbsm-prism", "gvbsm-vit"])
def test_the_examples_own_tests_pass_against_the_wheel(venv: Venv, example: str, tmp_path: Path) -> None:
    done = venv.run(f"pytest -q -p no:cacheprovider {EXAMPLES / example}", tmp_path)
    assert "passed" in done.stdout


def test_from_nothing_to_a_run_in_a_few_commands(venv: Venv, tmp_path: Path) -> None:
    """`plugins new`, install, its tests, a run: no file is edited in between."""
    commands = [
        "gvbsm plugins new gvbsm-power --kind matcher",
        "pip install -e gvbsm-power",
        "pytest -q -p no:cacheprovider gvbsm-power",
        "gvbsm plugins show power",
        f"gvbsm run digits --matcher bn --matcher power:power=3 --out out {SHRUNK}",
    ]
    assert len(commands) < 10
    for command in commands:
        venv.run(command, tmp_path)
    recipe = (tmp_path / "out/recipe.toml").read_text()
    assert 'use = "power"' in recipe
    assert "power = 3.0" in recipe
    assert (tmp_path / "out/results.json").exists()
