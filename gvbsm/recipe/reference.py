"""Writes the reference of recipes (docs/recipes.md) from the recipe's own fields."""

from __future__ import annotations

from pydantic import BaseModel
from pydantic.fields import FieldInfo

from gvbsm.recipe.schema import Recipe
from gvbsm_registry.reference import default_text

HEAD = """# Recipes

Made from the code by `python -m gvbsm.recipe.reference > docs/recipes.md`; a test fails when it is not
current.

A recipe is a TOML file with one table per stage. A component is a table with `use = "NAME"` and its
options, or just its name. `gvbsm run RECIPE` takes a name (`gvbsm recipes` lists them) or a path; options
override it: `--ipc 1`, `--matcher bn --matcher conv_patch:patch_size=2` (exactly these matchers),
`--set synthesis.matchers.0.momentum=0`. The resolved recipe, with every default written out, is kept in the
run folder and reproduces the run.

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
    return (field.description or name.replace("_", " ")).replace("|", "\\|")


if __name__ == "__main__":
    print(reference(), end="")
