"""What can be written in a recipe.

In: a YAML file and `key=value` overrides. Out: a checked, typed `Recipe`.
Never: imports torch, opens data or networks.
"""

from meco_timm.recipe.hub_licences import OTHER
from meco_timm.recipe.method import Alignment, Discriminators, Losses, Method
from meco_timm.recipe.networks import Network, Store, Teacher, named_teachers
from meco_timm.recipe.reading import (
    changed_keys,
    check_recipe,
    fingerprint,
    headline,
    load_recipe,
    loop_key,
    read_keys,
    recipe_key,
    saved_key,
    to_yaml,
    with_run,
    written_run,
)
from meco_timm.recipe.recipe import Publish, Recipe, Zoo
from meco_timm.recipe.sections import WATCHING, Data, Loop
from meco_timm.recipe.shipped import RECIPES, purpose, shipped_recipes, write_recipe
from meco_timm.recipe.yaml_text import dump_yaml

__all__ = [
    "OTHER",
    "RECIPES",
    "WATCHING",
    "Alignment",
    "Data",
    "Discriminators",
    "Loop",
    "Losses",
    "Method",
    "Network",
    "Publish",
    "Recipe",
    "Store",
    "Teacher",
    "Zoo",
    "changed_keys",
    "check_recipe",
    "dump_yaml",
    "fingerprint",
    "headline",
    "load_recipe",
    "loop_key",
    "named_teachers",
    "purpose",
    "read_keys",
    "recipe_key",
    "saved_key",
    "shipped_recipes",
    "to_yaml",
    "with_run",
    "write_recipe",
    "written_run",
]
