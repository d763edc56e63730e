"""The Space of a student: a page of the Hub on which its network can be tried, made with Gradio."""

import io
import json

from huggingface_hub import SpaceCardData
from markupsafe import Markup

from meco_timm.data import Images, decode, load_data
from meco_timm.hub.card import card_fields, licence_fields
from meco_timm.recipe import Data, Publish
from meco_timm.reporting import Results, builtin_template, render_markdown, title

APP = "app.py"
GRADIO = "6.31.0"  # with which the app is tested
EXAMPLES = 3
LARGEST_EXAMPLE = 512  # pixels of the longer side


def space_files(results: Results, settings: Publish) -> dict[str, bytes]:
    """Name in the Space → content: the app, what it needs, its README, and example images, if they are allowed.

    Raises:
        UserError: the run's images cannot be read.
    """
    recipe = results.recipe
    images = load_data(Data.model_validate(recipe["data"]), recipe["seed"]).validation if settings.examples else None
    examples = example_images(images) if images else {}
    fields = card_fields(results, settings)
    about = f"Classifies an image with [{settings.repo}](https://huggingface.co/{settings.repo})."
    app = render_markdown(
        builtin_template("app.py.jinja"),
        "app.py.jinja",
        **{key: fields[key] for key in ("load", "to_rgb")},
        title=Markup(json.dumps(title(results))),
        about=Markup(json.dumps(about)),
    )
    front = SpaceCardData(
        title=title(results)[:60], sdk="gradio", sdk_version=GRADIO, app_file=APP, models=[settings.repo],
        pinned=False, **licence_fields(settings),
    )  # fmt: skip
    needed = f"timm>={results.about['versions']['timm']}\ntorch\n"
    made = {APP: app, "requirements.txt": needed, "README.md": f"---\n{front.to_yaml()}\n---\n\n{about}\n"}
    return {name: text.encode() for name, text in made.items()} | examples


def example_images(images: Images) -> dict[str, bytes]:
    """A few of the images as PNG files, without what else their files may say."""
    images, files = images.subsample(EXAMPLES), {}
    for number, stored in enumerate(images.split.read(images.rows), 1):
        image = decode(stored, images.split.background)
        image.thumbnail((LARGEST_EXAMPLE, LARGEST_EXAMPLE))
        stream = io.BytesIO()
        image.save(stream, "png")
        files[f"examples/{number}.png"] = stream.getvalue()
    return files
