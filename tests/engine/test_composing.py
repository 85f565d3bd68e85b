"""Recipes that extend others: what wins, what is replaced whole, and what is said of circles and gaps."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest

from gvbsm.recipe import composing, loading
from gvbsm.recipe.fields import Used
from gvbsm.recipe.schema import Evaluation, Relabel, Synthesis
from gvbsm.results.records import published_rows
from gvbsm_registry import GvbsmError, Registry


def write(folder: Path, **files: str) -> None:
    for name, text in files.items():
        (folder / f"{name}.toml").write_text(text)


def tables(path: Path, registry: Registry) -> dict[str, Any]:
    return composing.compose(path, registry)


def test_later_ones_win_and_the_recipes_own_tables_are_last(registry: Registry, tmp_path: Path) -> None:
    write(
        tmp_path,
        one='name = "one"\ndescription = "1"\nseed = 1\n[synthesis]\nipc = 1\nbatch = 1\niterations = 1\n',
        two="seed = 2\n[synthesis]\nipc = 2\nbatch = 2\n[relabel]\nepochs = 2\n",
        mine='extends = ["one.toml", "two.toml"]\n[synthesis]\nipc = 3\n',
    )
    assert tables(tmp_path / "mine.toml", registry) == {
        "seed": 2,
        "synthesis": {"ipc": 3, "batch": 2, "iterations": 1},
        "relabel": {"epochs": 2},
    }
    made = loading.load(tmp_path / "mine.toml", registry)
    assert (made.name, made.description, made.synthesis.batch) == ("mine", "", 2)
    assert "extends" not in made.toml()


def test_paths_are_relative_to_the_file_that_names_them(registry: Registry, tmp_path: Path) -> None:
    inner = tmp_path / "inner"
    inner.mkdir()
    write(inner, base="[synthesis]\nipc = 4\n", middle='extends = "base.toml"\n')
    write(tmp_path, mine='extends = ["inner/middle.toml"]\n')
    assert tables(tmp_path / "mine.toml", registry) == {"synthesis": {"ipc": 4}}


@pytest.mark.parametrize(
    ("below", "above", "made"),
    [
        ({"use": "a", "x": 1}, {"use": "a", "y": 2}, {"use": "a", "x": 1, "y": 2}),
        ({"use": "a", "x": 1}, {"y": 2}, {"use": "a", "x": 1, "y": 2}),
        ({"use": "a", "x": 1}, {"use": "b", "y": 2}, {"use": "b", "y": 2}),
        ({"use": "a", "x": 1}, "b", "b"),
        ("a", {"y": 2}, {"use": "a", "y": 2}),
        ("a", {"use": "a", "y": 2}, {"use": "a", "y": 2}),
        ("a", {"use": "b", "y": 2}, {"use": "b", "y": 2}),
        ({"x": 1}, {"use": "b", "y": 2}, {"use": "b", "y": 2}),
        ([1, 2], [3], [3]),
        ({"x": [{"use": "a"}]}, {"x": []}, {"x": []}),
        ({"x": {"y": {"use": "a", "n": 1}}}, {"x": {"y": {"use": "b"}}}, {"x": {"y": {"use": "b"}}}),
    ],
)
def test_tables_are_merged_but_no_options_of_two_components(below: Any, above: Any, made: Any) -> None:
    before = {"key": below}
    assert composing.merge(before, {"key": above}) == {"key": made}
    assert before == {"key": below}


def test_circles_and_gaps_are_one_line_that_names_the_chain(registry: Registry, tmp_path: Path) -> None:
    write(
        tmp_path,
        a='extends = ["b.toml"]\n',
        b='extends = ["sets/digits", "c.toml"]\n',
        c='extends = ["a.toml"]\n',
        none='extends = ["gone.toml"]\n',
        above='extends = ["none.toml"]\n',
        unknown='extends = ["sets/digit"]\n',
        number="extends = 3\n",
        broken='extends = ["bad.toml"]\n',
        bad="[[",
    )
    chain = " > ".join(str(tmp_path / f"{name}.toml") for name in "abca")
    for name, told in {
        "a": f"recipe {chain}: extends itself; take one of them out of 'extends'",
        "above": rf"none\.toml: extends: gone\.toml: no such file beside {tmp_path}/none\.toml",
        "unknown": r"unknown\.toml: extends: unknown recipe 'sets/digit'; did you mean 'sets/digits'",
        "number": "extends: give a list of names or paths, got 3",
        "broken": rf"recipe {tmp_path}/bad\.toml: is not TOML",
    }.items():
        with pytest.raises(GvbsmError, match=told) as caught:
            loading.load(tmp_path / f"{name}.toml", registry)
        assert "\n" not in str(caught.value)


def test_a_method_and_a_protocol_are_laid_over_a_recipe(registry: Registry, tmp_path: Path) -> None:
    write(
        tmp_path,
        plain="[synthesis]\nmatchers = []\n",
        own="[method]\ntitle = 'Mine'\n[synthesis]\nbatch = 7\n",
    )
    layers = [("protocol", "paper"), ("synthesis.ipc", 9)]
    made = loading.load("digits", registry, [("method", str(tmp_path / "own.toml")), *layers])
    assert (made.name, made.method, made.protocol) == ("digits-own-paper", "own", "paper")
    assert (made.synthesis.ipc, made.synthesis.batch, made.synthesis.iterations) == (9, 7, 500)
    assert made.evaluation.epochs == 1000
    assert made.evaluation.seeds == (0, 1, 2)  # which students are trained is the recipe's own
    assert made.relabel.augmentation.to_recipe()["flip"] == 0.0  # what suits the data stays
    again = loading.load(tmp_path / "plain.toml", registry, [("method", "gvbsm")])
    assert [matcher.full_name for matcher in again.synthesis.matchers] == ["bn", "conv_channel", "conv_patch"]
    assert loading.change(again, registry, [("protocol", "rd3")]).protocol == "rd3"
    with pytest.raises(GvbsmError, match="unknown method 'gvbsn'; did you mean 'gvbsm'"):
        loading.load("digits", registry, [("method", "gvbsn")])


@pytest.mark.parametrize(
    ("key", "value", "changed"),
    [
        ("evaluation.batch", 10, True),
        ("evaluation.optimizer.weight_decay", 0.0, True),
        ("relabel.cutmix", 0.0, True),
        ("evaluation.seeds", [5], False),
        ("evaluation.students", ["convnet"], False),
        ("synthesis.iterations", 3, False),
    ],
)
def test_a_protocol_that_is_changed_says_so(registry: Registry, key: str, value: Any, changed: bool) -> None:
    made = loading.load("digits", registry, [("protocol", "rd3"), (key, value), (key, value)])
    assert made.protocol == ("rd3, changed" if changed else "rd3")
    assert loading.change(made, registry, [("protocol", "rd3")]).protocol == "rd3"


def test_layers_come_before_other_settings_wherever_they_stand(registry: Registry) -> None:
    settings = [
        ("evaluation.epochs", 7),
        ("synthesis.iterations", 5),
        ("protocol", "rd3"),
        ("method", "gvbsm"),
    ]
    made = loading.load("digits", registry, settings)
    assert (made.name, made.protocol) == ("digits-gvbsm-rd3", "rd3, changed")
    assert (made.evaluation.epochs, made.synthesis.iterations) == (7, 5)


def test_a_recipe_that_names_the_protocol_itself_answers_for_it(registry: Registry, tmp_path: Path) -> None:
    own = "[evaluation]\nbatch = 9\n"
    write(
        tmp_path,
        silent=f'extends = ["protocols/rd3"]\n{own}',
        named=f'extends = ["protocols/rd3"]\nprotocol = "rd3"\n{own}',
    )
    assert loading.load(tmp_path / "silent.toml", registry).protocol == "rd3, changed"
    assert loading.load(tmp_path / "named.toml", registry).protocol == "rd3"


def test_what_a_method_published_goes_with_it(registry: Registry, tmp_path: Path) -> None:
    row = "{ data = 'digits', ipc = 1, student = 'convnet', top1 = 90.0, source = 'a paper' }"
    write(tmp_path, silent="[method]\ntitle = 'S'\n", told=f"published = [{row}]\n[method]\ntitle = 'T'\n")
    made = loading.load("cifar10", registry)
    assert {row.data for row in made.published} == {"cifar10"}
    assert {(row.ipc, row.student): row.top1 for row in made.published} == {
        (10, "ConvNet-W128"): 46.5,
        (10, "ResNet18"): 53.5,
        (50, "ConvNet-W128"): 54.3,
        (50, "ResNet18"): 59.2,
    }
    silent = loading.load("cifar10", registry, [("method", str(tmp_path / "silent.toml"))])
    assert silent.published == ()
    assert silent.reproduces == ""  # that is what the recipe was, without the other method
    told = loading.load("digits", registry, [("method", str(tmp_path / "told.toml"))])
    assert [row["top1"] for row in published_rows(told.tables())] == [90.0]
    assert published_rows(loading.change(told, registry, [("synthesis.ipc", 2)]).tables()) == []
    assert {row["ipc"] for row in published_rows(loading.load("imagenet-1k", registry).tables())} == {10}
    other = loading.load("cifar10-small", registry, [("data", "digits")])
    assert (loading.load("cifar10-small", registry).data_name, other.data_name) == ("cifar10", "")
    assert other.result_tables() == loading.change(other, registry, [("published", [])]).result_tables()


def test_trainings_are_keys_of_the_evaluation() -> None:
    assert set(Evaluation.model_fields) > composing.TRAININGS


def shipped(registry: Registry, folder: str) -> dict[str, dict[str, Any]]:
    names = [name for name in registry.recipes() if name.startswith(f"{folder}/")]
    return {name: tables(registry.recipe(name), registry) for name in names}


def test_every_shipped_set_method_and_protocol_is_what_it_should_be(registry: Registry) -> None:
    """A method says every component of [synthesis], for laid over a recipe it takes nothing away."""
    fields = Synthesis.model_fields
    marks = {name: [*field.metadata, field.annotation] for name, field in fields.items()}
    components = {name for name, found in marks.items() if re.search(r"Used|tuple\[", repr(found))}
    components -= {"augmentation"}  # what suits the data, unless the method is about it
    assert {"matchers", "optimizer", "initializer"} <= components
    assert any(isinstance(mark, Used) for mark in fields["optimizer"].metadata)
    for name, said in shipped(registry, "sets").items():
        assert {"data", "backbones", "pretrain", "measure"} <= set(said), name
        assert "students" in said["evaluation"], name
        assert not {"method", "protocol", "reproduces"} & set(said), name
    for name, said in shipped(registry, "methods").items():
        missing = components - set(said["synthesis"])
        assert not missing, f"{name}: say {', '.join(sorted(missing))} in [synthesis], too"
        assert "iterations" in said["synthesis"], name
        assert "soft" in said["evaluation"], f"{name}: say soft in [evaluation], true or false"
        assert "data" not in said, name
        assert said["method"] == name.partition("/")[2]
    for name, said in shipped(registry, "protocols").items():
        assert said["protocol"] == name.partition("/")[2]
        assert said["relabel"]["epochs"] == said["evaluation"]["epochs"], name
        students = set(Evaluation.model_fields) - composing.TRAININGS
        assert set(said["evaluation"]) == students, name  # all of it, for none of another's may stay
        free = {"ensembler", "codec", "pruning", "keep_fraction", "epochs_per_file"}
        assert set(said["relabel"]) == set(Relabel.model_fields) - free, name


def test_ready_recipes_resolve_to_the_papers_settings(registry: Registry) -> None:
    """A few of each recipe's settings, one from every file that it is made of."""
    expected = {
        "digits": (3, 500, 1, "real", "first", 0.4, 150, 10, 0.003, "adamw"),
        "cifar10": (5, 4000, 10, "noise", "zero", 0.4, 1000, 64, 0.001, "adamw"),
        "cifar10-small": (4, 1000, 10, "noise", "zero", 0.4, 300, 50, 0.001, "adamw"),
        "cifar10-small-real": (4, 400, 10, "real", "first", 0.4, 300, 50, 0.001, "adamw"),
        "cifar100": (5, 4000, 10, "noise", "zero", 0.4, 1000, 64, 0.1, "sgd"),
        "tiny-imagenet": (5, 4000, 50, "noise", "zero", 0.4, 100, 128, 0.2, "sgd"),
        "imagenet-1k": (4, 4000, 10, "noise", "zero", 0.0, 300, 1024, 0.001, "adamw"),
    }
    assert set(expected) == {name for name in registry.recipes() if "/" not in name}
    for name, settings in expected.items():
        made = loading.load(name, registry)
        found = (
            len(made.backbones),
            made.synthesis.iterations,
            made.synthesis.ipc,
            made.synthesis.initializer.full_name,
            made.synthesis.ema_init,
            made.synthesis.matchers[2].drop_rate,
            made.evaluation.epochs,
            made.evaluation.batch,
            made.evaluation.learning_rate,
            made.evaluation.optimizer.full_name,
        )
        assert found == settings, name
        assert made.method == "gvbsm"
        assert made.protocol == ("" if name.startswith(("digits", "cifar10-")) else "paper")
