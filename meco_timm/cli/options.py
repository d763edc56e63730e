"""The arguments and options that several commands share."""

from pathlib import Path
from typing import Annotated

import typer

from meco_timm.common import set_verbosity

Verbose = Annotated[
    bool | None,
    typer.Option(
        "--verbose/--quiet",
        "-v/-q",
        callback=set_verbosity,
        help="Show all messages, or only warnings and results.",
        show_default=False,
    ),
]
RecipePath = Annotated[
    Path,
    typer.Argument(
        help="A recipe: a file, a name that `meco-timm recipes` lists, or hf-hub:owner/name of a published student.",
        metavar="RECIPE",
        show_default=False,
    ),
]
Overrides = Annotated[
    list[str] | None,
    typer.Argument(help="Keys of the recipe to change, for example loop.lr=5e-4.", metavar="[KEY=VALUE]..."),
]
Utilisation = Annotated[
    float | None, typer.Option(help="Assumed share of a GPU's peak FLOP/s in the plan; default: as measured.")
]
Run = Annotated[Path, typer.Argument(help="Folder of a finished run.", show_default=False)]
AnyNetwork = "A finished run, whose student is meant, or a timm name, hf-hub:owner/name or local-dir:path."
ModelName = Annotated[str, typer.Argument(help=AnyNetwork, metavar="RUN|NETWORK", show_default=False)]
Images = "Folder of class folders or parquet files, or a Hub id."
Size = Annotated[int | None, typer.Option(help="Input size in pixels; default: the network's own.")]
Classes = Annotated[str | None, typer.Option(help="File with the network's class names, one per line.")]
BatchSize = Annotated[int, typer.Option(help="Images per batch.", min=1)]
