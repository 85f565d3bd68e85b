"""Writes the reference of recipes (docs/recipes.md) from the recipe's own fields."""

from __future__ import annotations

import typing

from pydantic import BaseModel
from pydantic.fields import FieldInfo

from gvbsm.recipe.schema import Recipe
from gvbsm_registry import Used
from gvbsm_registry.reference import default_text

HEAD = """# Recipes

Made from the code by `python -m gvbsm.recipe.reference > docs/recipes.md`; a test fails when it is not
current. Equations are those of G-VBSM (arXiv 2311.17950); [squeeze] and [recover] are arXiv 2306.13092's.

A recipe is a TOML file with one table per stage. A component is a table with `use = "NAME"` and its
options, or just its name; `DISTRIBUTION:NAME` tells apart what several plugins call alike. `gvbsm run RECIPE`
takes a name (`gvbsm recipes` lists them) or a path; options override it: `--ipc 1`,
`--matcher bn --matcher conv_patch:patch_size=2` (exactly these matchers),
`--set synthesis.matchers.0.momentum=0`. The resolved recipe, with every default written out, is kept in the
run folder and reproduces the run. `gvbsm plugins` lists the components, and
`gvbsm plugins show NAME` the options of one.

```toml
data = "digits"
backbones = ["convnet", { use = "wrn_16_2" }]

[synthesis]
ipc = 1
iterations = 500

[[synthesis.matchers]]
use = "conv_patch"
patch_size = 4
drop_rate = 0.4
```

## Recipes are composed

A recipe may begin with others, so that data sets, methods and protocols are written once each:

```toml
extends = ["sets/cifar10", "methods/gvbsm", "protocols/paper"]
name = "mine"

[synthesis]
ipc = 50
```

- Their tables are merged in order, later ones win, the recipe's own last. Lists are replaced. A component's
  table is merged into one with the same `use`; with another `use` it replaces that one whole.
- A name that ends in `.toml` is a path, relative to the file; any other is a recipe that some plugin ships.
  What is extended may extend others itself. `name`, `description` and `reproduces` are not inherited.
- `gvbsm run digits --method NAME --protocol NAME` (also of `estimate`, `compare`, `sweep` and `import`; from
  Python `gvbsm.run("digits", method=…, protocol=…)`) lays `methods/NAME` over the recipe and `protocols/NAME`
  over that. `--set` and the other options come last. They are keys, too, so that a sweep can go through them:
  `gvbsm sweep digits --vary method=NAME,NAME`.
- `sets/` hold the data, the backbones and what suits them: pretraining, measuring, views, students.
  `methods/` hold what a method says of `[synthesis]` and `[relabel]`, every component, since what is laid
  over a recipe takes nothing away. `protocols/` hold how views are labelled and students trained.
- A method's recipe has a table `[method]` of facts, for `gvbsm methods` and its card: `title`, `what`,
  `arxiv`, `year`, `status` (reproduced, partly, not), `why`, `needs` (what its command on digits needs beside
  `--method`), `notes`, and `ours`, a list of measured figures (`data`, `ipc`, `student`, `top1`, `spread`,
  `labels`, `random`, `protocol`, `command`, `machine`, `date`); and `[[published]]` figures. The first of
  each list is its headline.
- The resolved recipe remembers both names, as `method` and `protocol`. Where something laid over a protocol
  changes how students are trained, its name is followed by ", changed", unless that names the protocol anew.
"""


def reference() -> str:
    """Return the text of docs/recipes.md."""
    sections = {
        name: field.annotation
        for name, field in Recipe.model_fields.items()
        if isinstance(field.annotation, type)
        and issubclass(field.annotation, BaseModel)
        and name in ("pretrain", "measure", "synthesis", "relabel", "evaluation")
    }
    own = {name: field for name, field in Recipe.model_fields.items() if name not in sections}
    parts = [HEAD, "\n## Top level\n\n", _table(own)]
    for name, section in sections.items():
        parts += [f"\n## [{name}]\n\n{section.__doc__}\n\n", _table(section.model_fields)]
    return "".join(parts)


def _table(fields: dict[str, FieldInfo]) -> str:
    rows = [
        f"| `{name}` | `{default_text(field.default)}` | {_meaning(name, field)} |\n"
        for name, field in fields.items()
    ]
    return "| key | default | meaning |\n| --- | --- | --- |\n" + "".join(rows)


def _meaning(name: str, field: FieldInfo) -> str:
    return (field.description or _link(name.replace("_", " "), field)).replace("|", "\\|")


def _link(text: str, field: FieldInfo) -> str:
    """Return `text`, with a link to the kind whose components stand in the field, if they do."""
    inner = getattr(next(iter(typing.get_args(field.annotation)), None), "__metadata__", ())
    kinds = [mark.kind.kind for mark in (*field.metadata, *inner) if isinstance(mark, Used)]
    return f"[{text}](reference.md#{kinds[0]})" if kinds else text


if __name__ == "__main__":
    print(reference(), end="")
