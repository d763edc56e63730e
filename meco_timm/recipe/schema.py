"""JSON schema of a recipe, by which editors complete and check recipes.

python -m meco_timm.recipe.schema > recipes/recipe.schema.json
"""

import json

from meco_timm.recipe.recipe import Recipe


def schema() -> str:
    """The schema as text. A network may be written as its name, a teacher as `train: name`."""
    tree = Recipe.model_json_schema()
    definitions = tree["$defs"]
    definitions["Teacher"]["properties"]["train"]["type"] = ["boolean", "string"]
    definitions["Teacher"]["required"] = []
    for holder, key in ((tree["properties"]["teachers"], "items"), (tree["properties"], "student")):
        holder[key] = {"anyOf": [{"type": "string"}, holder[key]]}
    return json.dumps(tree, indent=1) + "\n"


if __name__ == "__main__":
    print(schema(), end="")
