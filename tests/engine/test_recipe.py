"""Recipes: what they resolve to, what overrides do, and what is said of mistakes."""

from __future__ import annotations

import copy
import re

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from gvbsm.recipe import loading
from gvbsm.recipe import text as options
from gvbsm.recipe.text import Setting
from gvbsm.version import __version__
from gvbsm_registry import GvbsmError

COMPONENTS = st.sampled_from(["bn", "conv_channel", {"use": "conv_patch", "patch_size": 2, "momentum": 0.4}])
OVERRIDES = {
    "seed": st.integers(0, 2**63),
    "reproduces": st.text(st.characters(exclude_categories=["Cs"]), max_size=30),
    "synthesis.ipc": st.integers(1, 1000),
    "synthesis.iterations": st.integers(0, 10**6),
    "synthesis.learning_rate": st.floats(1e-12, 1e12),
    "synthesis.optimizer.betas": st.tuples(st.floats(0, 0.99), st.floats(0, 0.999)).map(list),
    "synthesis.batching": st.sampled_from(["by_class", "across_classes"]),
    "synthesis.matchers": st.lists(COMPONENTS, max_size=4),
    "synthesis.regularizers": st.lists(st.sampled_from(["dd", {"use": "tv", "weight": 0.5}]), max_size=3),
    "synthesis.augmentation.padding": st.integers(0, 9),
    "data.mean": st.lists(st.floats(0, 1), min_size=1, max_size=1),
    "data.names": st.lists(st.text("abcé \"\\'\n", min_size=1), min_size=2, max_size=3),
    "backbones.1.width": st.integers(1, 512),
    "backbones.0.match_weight": st.floats(0, 100),
    "pretrain.schedule": st.sampled_from(["cosine", {"use": "cosine", "warmup": 0.25}]),
    "relabel.ensembler": st.sampled_from(["mean", "normalized"]),
    "evaluation.seeds": st.lists(st.integers(0, 9), min_size=1, max_size=4, unique=True),
    "evaluation.full_baseline": st.booleans(),
}
TABLES = {
    "data": "toy_data",
    "backbones": ["toy_net", {"use": "convnet"}],
    "synthesis": {"augmentation": "crop_flip_roll", "optimizer": "adam"},
}


@settings(max_examples=80, deadline=None)
@given(
    st.dictionaries(st.sampled_from(sorted(OVERRIDES)), st.none()).flatmap(
        lambda keys: st.fixed_dictionaries({key: OVERRIDES[key] for key in keys})
    )
)
def test_the_resolved_recipe_reproduces_itself(registry, tmp_path_factory, changes):
    tables = copy.deepcopy(TABLES)
    for key, value in changes.items():
        loading.override(tables, key, value)
    made = loading.make(tables, registry, "here")
    path = tmp_path_factory.mktemp("recipes") / "resolved.toml"
    path.write_text(made.toml(), encoding="utf-8")
    again = loading.load(path, registry)
    assert again == made
    assert again.toml() == made.toml()
    assert loading.make(made.tables(), registry, "there") == made


def test_overrides_reach_lists_names_and_new_tables(registry):
    tables = copy.deepcopy(TABLES)
    for key, value in [
        ("backbones.0.width", 3),
        ("backbones.1", "toy_net"),
        ("synthesis.matchers", ["bn", {"use": "conv_patch"}]),
        ("synthesis.matchers.0.drop_rate", 0.5),
        ("synthesis.matchers.1.patch_size", 2),
        ("relabel.epochs", 7),
        ("data.image_size", 6),
    ]:
        loading.override(tables, key, value)
    made = loading.make(tables, registry, "here")
    assert [backbone.to_recipe()["use"] for backbone in made.backbones] == ["toy_net", "toy_net"]
    assert made.backbones[0].to_recipe()["width"] == 3
    assert made.synthesis.matchers[0].drop_rate == 0.5
    assert made.synthesis.matchers[1].to_recipe()["patch_size"] == 2
    assert made.relabel.epochs == 7
    assert made.data.to_recipe()["image_size"] == 6


def test_later_overrides_win_and_the_source_is_left_alone(registry, tmp_path):
    path = tmp_path / "mine.toml"
    path.write_text("[synthesis]\nipc = 3\n")
    made = loading.load(path, registry, [("synthesis.ipc", 4), ("synthesis.ipc", 5)])
    assert (made.name, made.synthesis.ipc) == ("mine", 5)
    assert path.read_text() == "[synthesis]\nipc = 3\n"


def test_an_option_of_a_component_that_was_left_to_its_default(registry, tmp_path):
    path = tmp_path / "mine.toml"
    path.write_text("")
    changes = [("pretrain.optimizer.momentum", 0.5), ("evaluation.schedule.warmup", 0.1)]
    made = loading.load(path, registry, changes)
    expected = {"use": "sgd", "momentum": 0.5, "weight_decay": 5e-4, "nesterov": False}
    assert made.pretrain.optimizer.to_recipe() == expected
    assert made.evaluation.schedule.to_recipe()["warmup"] == 0.1
    assert loading.load(path, registry).pretrain.optimizer.to_recipe() == {**expected, "momentum": 0.9}


@pytest.mark.parametrize(
    ("key", "value", "message"),
    [
        ("backbones.2.width", 3, r"backbones\.2\.width.*not a position in a list of 2"),
        ("backbones.x.width", 3, "'x' is not a position"),
        ("backbones.-1.width", 3, "'-1' is not a position"),
        ("synthesis.ipc.x", 3, "is not a table"),
    ],
)
def test_an_override_that_leads_nowhere(key, value, message):
    tables = {**copy.deepcopy(TABLES), "synthesis": {"ipc": 1}}
    with pytest.raises(GvbsmError, match=message) as caught:
        loading.override(tables, key, value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("key", "value", "message"),
    [
        ("synthesis.ipc", 0, r"synthesis\.ipc.*got 0"),
        ("synthesis.ipc", "many", r"synthesis\.ipc.*got 'many'"),
        ("synthesis.matchers", ["conv_pach"], r"synthesis\.matchers.*conv_pach.*conv_patch"),
        ("synthesis.matchers", [{"use": "bn", "wait": 1}], "wait.*weight"),
        ("synthesis.matchers", [{"image_size": 3}], 'use = "NAME"'),
        ("synthesis.matchers", [7], r'synthesis\.matchers.*use = "NAME"'),
        ("synthesis.matchers", "bn", r"synthesis\.matchers"),
        ("synthesis.matchers", [{"use": "bn", "drop_rate": 1.0}], "drop.*less than 1.*got 1.0"),
        ("sintesis", {"ipc": 1}, "unknown option 'sintesis'.*synthesis"),
        ("synthesis.iteration", 1, r"synthesis\.iteration"),
        ("synthesis", 3, "synthesis"),
        ("backbones", [], "backbones"),
        ("evaluation.seeds", [], "seeds"),
        ("synthesis.learning_rate", "a\nb", r"learning_rate"),
        ("seed", -1, "seed"),
    ],
)
def test_mistakes_are_one_line_with_place_and_key(registry, key, value, message):
    tables = copy.deepcopy(TABLES)
    loading.override(tables, key, value)
    with pytest.raises(GvbsmError, match=message) as caught:
        loading.make(tables, registry, "my.toml")
    assert str(caught.value).startswith("recipe my.toml: ")
    assert "\n" not in str(caught.value)


def test_all_mistakes_are_told_at_once(registry):
    tables = {"seed": -1, "synthesis": {"ipc": 0}, "relabel": {"cutmix": 2}}
    with pytest.raises(GvbsmError, match=r"seed: .*; synthesis\.ipc: .*; relabel\.cutmix: "):
        loading.make(tables, registry, "here")


def test_files_that_are_no_recipe(registry, tmp_path):
    broken = tmp_path / "broken.toml"
    broken.write_text("[synthesis\n")
    with pytest.raises(GvbsmError, match=r"broken\.toml: is not TOML"):
        loading.load(broken, registry)
    broken.write_bytes(b"name = '\xff'\n")
    with pytest.raises(GvbsmError, match=r"broken\.toml: is not TOML"):
        loading.load(broken, registry)
    with pytest.raises(GvbsmError, match="no such file"):
        loading.load(tmp_path / "none.toml", registry)
    with pytest.raises(GvbsmError, match="unknown recipe 'digit'; did you mean 'digits'"):
        loading.load("digit", registry)
    with pytest.raises(GvbsmError, match=r"^'edc' is a method; lay it over a recipe: digits --method edc$"):
        loading.load("edc", registry)


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("5", 5),
        ("0.5", 0.5),
        ("true", True),
        ("[0.5, 0.9]", [0.5, 0.9]),
        ("{ use = 'bn' }", {"use": "bn"}),
        ('"5"', "5"),
        ("reorder", "reorder"),
        ("/a b/c", "/a b/c"),
        ("", ""),
        ("1 2", "1 2"),
        ("x = [", "x = ["),
        ("a\nb = 1", "a\nb = 1"),
    ],
)
def test_values_are_toml_or_text(text, value):
    assert options.parse_value(text) == value


@pytest.mark.parametrize(
    ("text", "table"),
    [
        ("bn", {"use": "bn"}),
        ("bn:", {"use": "bn"}),
        ("timm/vit_tiny", {"use": "timm/vit_tiny"}),
        ("gvbsm-more:bn", {"use": "gvbsm-more:bn"}),
        ("gvbsm-more:bn:weight=2,drop_rate=0.5", {"use": "gvbsm-more:bn", "weight": 2, "drop_rate": 0.5}),
        ("conv_patch:patch_size=2,weight=0.5", {"use": "conv_patch", "patch_size": 2, "weight": 0.5}),
        ("resized_crop:scale=[0.5, 1.0],flip=0", {"use": "resized_crop", "scale": [0.5, 1.0], "flip": 0}),
        ("convnet:weights=/a:b=c.pth", {"use": "convnet", "weights": "/a:b=c.pth"}),
        ('x:name="a,b",y={a=[1,2],b=2}', {"use": "x", "name": "a,b", "y": {"a": [1, 2], "b": 2}}),
        ("x: image_size = 2", {"use": "x", "image_size": 2}),
        (r'x:name="a\"b,c",y=1', {"use": "x", "name": 'a"b,c', "y": 1}),
        (r"x:name='a\',y=1", {"use": "x", "name": "a\\", "y": 1}),
        ('x:name="[",y=1', {"use": "x", "name": "[", "y": 1}),
        ("x:name=it's,y=1", {"use": "x", "name": "it's", "y": 1}),
    ],
)
def test_components_on_the_command_line(text, table):
    assert options.parse_component(text) == table


@pytest.mark.parametrize("text", ["bn:drop,x=1", "bn:=3", "bn:drop_rate=1,x"])
def test_components_on_the_command_line_with_mistakes(text):
    with pytest.raises(GvbsmError, match="NAME:key=value"):
        options.parse_component(text)


def test_shipped_recipes_load_and_say_what_they_reproduce(registry):
    for name in registry.recipes():
        if not name.startswith("sweeps/"):
            made = loading.load(name, registry)
            assert made.name == name.rpartition("/")[2]
            assert made.description or made.reproduces


OLD_VALUES = {
    "data.side": 8,
    "pretrain.floor": 0.1,
    "synthesis.loop": "original",
    "synthesis.average_start": "first",
    "synthesis.backbone_order": "random",
    "synthesis.cross_entropy": 0.5,
    "synthesis.group": 2,
    "synthesis.matchers.*.first": 10.0,
    "synthesis.matchers.*.drop": 0.5,
    "synthesis.matchers.*.side": 4,
    "relabel.keep": 0.5,
    "relabel.block": 50,
    "evaluation.plain": True,
    "evaluation.full": True,
    "evaluation.random": False,
    "pretrain.momentum": 0.5,
    "pretrain.weight_decay": 0.1,
    "synthesis.betas": [0.5, 0.9],
    "evaluation.momentum": 0.5,
    "evaluation.weight_decay": 0.1,
}
"""Keys of versions before that have another name now, with a value that each could have."""


@pytest.mark.parametrize("old", OLD_VALUES)
def test_keys_of_before_are_told_their_new_names(registry, old):
    key = old.replace("*", "1")
    tables = {**copy.deepcopy(TABLES), "synthesis": {"matchers": ["bn", {"use": "conv_patch"}]}}
    tables["evaluation"] = {"optimizer": "sgd"}
    made = loading.make(tables, registry, "my.toml").tables()
    loading.override(tables, key, OLD_VALUES[old])
    above, _, last = loading.RENAMED[old].rpartition(".")
    new = last if above == old.rpartition(".")[0] else re.escape(loading.RENAMED[old])
    with pytest.raises(GvbsmError, match=rf"^recipe my\.toml: {key} is now called {new}$"):
        loading.make(tables, registry, "my.toml")
    place = made
    for part in loading.RENAMED[old].replace("*", "1").split(".")[:-1]:
        place = place[int(part)] if isinstance(place, list) else place[part]
    assert last in place


def test_every_key_of_before_is_tried():
    assert set(OLD_VALUES) == set(loading.RENAMED)


def test_several_keys_of_before_are_told_at_once(registry):
    tables = {"synthesis": {"loop": "original"}, "relabel": {"keep": 0.5}}
    message = r"synthesis\.loop is now called batching; relabel\.keep is now called keep_fraction$"
    with pytest.raises(GvbsmError, match=message):
        loading.make(tables, registry, "here")


def test_a_list_is_asked_for_as_one(registry):
    with pytest.raises(
        GvbsmError, match=r"^--set evaluation\.students=convnet: give a list, in brackets, got 'conv"
    ):
        loading.load("digits", registry, [options.parse_setting("evaluation.students=convnet")])


def test_a_key_of_before_that_was_typed_is_blamed_on_its_option(registry):
    with pytest.raises(
        GvbsmError, match=r"^--set relabel\.keep=1: relabel\.keep is now called keep_fraction$"
    ):
        loading.load("digits", registry, [options.parse_setting("relabel.keep=1")])


BN = {"use": "bn", "rech": 2}
SET = options.parse_setting


@pytest.mark.parametrize(
    ("settings", "told"),
    [
        (
            [Setting("synthesis.matchers", ["bn", BN], "--matcher bn", "--matcher X")],
            "--matcher X: matcher 'bn': unknown option 'rech'; available: ",
        ),
        (
            [Setting("synthesis.ipc", 0, "--ipc 0")],
            "--ipc 0: synthesis.ipc: Input .*, got 0",
        ),
        ([SET("synthesis.iteration=3")], "--set synthesis.iteration=3: unknown option.*mean 'iterations'"),
        ([SET("backbones.0.widht=3")], "--set backbones.0.widht=3: .*unknown option 'widht'"),
        ([SET("backbones=[]")], r"--set backbones=\[\]: Tuple should have at least 1 item"),
        ([SET("pretrain.optimizer=sdg")], "--set pretrain.optimizer=sdg: unknown optimizer 'sdg'"),
        ([("seed", -1), SET("synthesis.ipc=0")], "--set synthesis.ipc=0: .*; recipe .*: seed: "),
    ],
)
def test_a_wrong_option_is_blamed_and_not_the_recipe(registry, tmp_path, settings, told):
    path = tmp_path / "mine.toml"
    path.write_text('data = "toy_data"\nbackbones = ["toy_net"]\n')
    with pytest.raises(GvbsmError, match=told) as caught:
        loading.load(path, registry, settings)
    assert str(caught.value).startswith("--")
    assert "\n" not in str(caught.value)
    assert (str(path) in str(caught.value)) == ("recipe" in told)


def test_a_list_is_not_said_to_be_too_short_beside_what_is_wrong_in_it(registry):
    with pytest.raises(GvbsmError) as caught:
        loading.make({"backbones": [{"use": "convnet", "width": 0}]}, registry, "here")
    assert str(caught.value).startswith(
        "recipe here: backbones.0: backbone 'convnet': width: Input should be"
    )
    assert str(caught.value).endswith("got 0")


def test_a_recipe_remembers_whose_its_components_were(registry, tmp_path):
    made = loading.make(TABLES, registry, "here")
    assert made.components["backbone:convnet"] == f"gvbsm {__version__}"
    assert made.components["schedule:cosine"] == f"gvbsm {__version__}"
    assert "components" not in made.result_tables()
    path = tmp_path / "recipe.toml"
    text = made.toml().replace("toy_net", "gone_net").replace("no distribution ?", "gvbsm-gone 0.3")
    path.write_text(text)
    with pytest.raises(GvbsmError) as caught:
        loading.load(path, registry)
    assert "unknown backbone 'gone_net'" in str(caught.value)
    told = "the recipe was made with backbone 'gone_net' of gvbsm-gone 0.3: install that again"
    assert str(caught.value).endswith(told)
    path.write_text(made.toml().replace("ipc = 10", "ipc = 0"))
    with pytest.raises(GvbsmError) as caught:
        loading.load(path, registry)
    assert "made with" not in str(caught.value)
