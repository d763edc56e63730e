"""The commands about networks rather than runs: measure, try, export and choose them."""

from pathlib import Path
from typing import Annotated, Any

import typer

import meco_timm
from meco_timm.cli.options import AnyNetwork, BatchSize, Classes, Images, ModelName, Size, Verbose
from meco_timm.common import UserError

of_networks = typer.Typer()

OPTIONS = {  # of `evaluate`, by the recipe's key that messages of other rooms name
    "data.source": "--data",
    "data.test_split": "--split",
    "evaluate.classes": "--classes",
    "evaluate.missing=mask": "--mask",
}


def _with_options(error: UserError) -> UserError:
    """The error with the options of a command in place of the keys of a recipe."""
    text = str(error)
    for key, option in OPTIONS.items():
        text = text.replace(key, option)
    return UserError(text)


@of_networks.command()
def evaluate(
    model: ModelName,
    data: Annotated[str, typer.Option(help=Images, show_default=False)],
    split: Annotated[
        str | None, typer.Option(help="Split; default: test, else validation, else what its own run held out.")
    ] = None,
    size: Size = None,
    classes: Classes = None,
    mask: Annotated[bool, typer.Option("--mask", help="Allow classes that the network does not have.")] = False,
    batch_size: BatchSize = 64,
    verbose: Verbose = None,
) -> None:
    """Evaluate any timm network on any data set: accuracy, calibration and cost."""
    from pydantic import ValidationError

    from meco_timm.recipe import Teacher

    try:
        network = Teacher(model=model, size=size, classes=classes, missing="mask" if mask else "error")
    except ValidationError as error:
        raise UserError(f"evaluate: --{error.errors()[0]['loc'][0]}: {error.errors()[0]['msg']}.") from None
    from meco_timm.evaluation import measure, print_table

    try:
        measured = measure(network, data, split, batch_size)
    except UserError as error:
        raise _with_options(error) from None
    print_table(measured.rows, measured.title)


@of_networks.command()
def predict(
    model: ModelName,
    files: Annotated[
        list[str], typer.Argument(help="Image files, folders of images, or - for a list of paths on standard input.")
    ],
    top: Annotated[int, typer.Option(help="Classes per image.", min=1)] = 3,
    csv: Annotated[bool, typer.Option("--csv", help="Comma-separated values, one line per image.")] = False,
    json: Annotated[bool, typer.Option("--json", help="A JSON object per image, one a line.")] = False,
    classes: Classes = None,
    batch_size: BatchSize = 64,
    verbose: Verbose = None,
) -> None:
    """Name the classes of images, with their probabilities."""
    from meco_timm.evaluation import iter_predictions, print_predictions

    if csv and json:
        raise UserError("predict: --csv and --json exclude each other.")
    form: Any = "csv" if csv else "json" if json else "text"
    print_predictions(iter_predictions(model, files, top, classes, batch_size), form)


@of_networks.command()
def embed(
    model: ModelName,
    files: Annotated[
        list[str],
        typer.Argument(
            help="Image files, folders of images, a file that this command wrote, or - for a list of paths."
        ),
    ],
    output: Annotated[
        Path | None, typer.Option("--output", "-o", help="Parquet file with the columns path and embedding.")
    ] = None,
    nearest: Annotated[str | None, typer.Option(help="An image: print the files that are most like it.")] = None,
    count: Annotated[int, typer.Option(help="Number of files for --nearest.", min=1)] = 5,
    batch_size: BatchSize = 64,
    verbose: Verbose = None,
) -> None:
    """Compute the embeddings of images: pooled features before the head."""
    if output is None and nearest is None:
        raise UserError("embed: write --output FILE.parquet, or --nearest IMAGE.")
    from meco_timm.evaluation import embed as embed_files
    from meco_timm.evaluation import most_similar, write_embeddings

    found = embed_files(model, files, batch_size)
    if output is not None:
        write_embeddings(found, model, output)
        print(f"{output}: {len(found.files):,} embeddings of length {found.vectors.shape[1]:,}")
    if nearest is not None:
        for file, cosine in most_similar(found, embed_files(model, [nearest], batch_size), count):
            print(f"{cosine:.3f}  {file}")


@of_networks.command()
def export(
    network: ModelName,
    onnx: Annotated[bool, typer.Option("--onnx", help="Write model.onnx; implied, as the only format.")] = True,
    int8: Annotated[bool, typer.Option("--int8", help="Also write model_int8.onnx, quantised to eight bits.")] = False,
    preprocess: Annotated[
        bool, typer.Option("--preprocess", help="Normalise inside the graph: its input is RGB in [0, 1].")
    ] = False,
    data: Annotated[str | None, typer.Option(help=f"For a network that is no run's: {Images}")] = None,
    size: Size = None,
    output: Annotated[
        Path | None, typer.Option("--output", "-o", help="Folder; default: student/onnx in the run, or onnx.")
    ] = None,
    verbose: Verbose = None,
) -> None:
    """Export a network to ONNX and compare the file with PyTorch. Needs the extra `export`."""
    meco_timm.export_onnx(network, output, int8=int8, preprocess=preprocess, data=data, size=size)


@of_networks.command()
def latency(
    networks: Annotated[list[str], typer.Argument(help=AnyNetwork, metavar="RUN|NETWORK...", show_default=False)],
    size: Size = None,
    verbose: Verbose = None,
) -> None:
    """Time networks on this machine's CPU: PyTorch and ONNX Runtime, float32 and int8, batches of 1 and 32."""
    from meco_timm.hub import measure_networks

    measure_networks(networks, size)


@of_networks.command()
def students(
    budget: Annotated[str, typer.Option(help="5ms (one image), 4M (parameters), 300MMACs or 1GMACs.")],
    image_size: Annotated[int, typer.Option(help="Input size in pixels.", min=1)] = 224,
    pattern: Annotated[
        list[str] | None, typer.Option(help="Names as for timm.list_models; default: the families of small networks.")
    ] = None,
    results: Annotated[
        str | None, typer.Option(help="timm's table of accuracies: results/results-imagenet.csv of its repository.")
    ] = None,
    top: Annotated[int, typer.Option(help="Most architectures to list.", min=1)] = 20,
    verbose: Verbose = None,
) -> None:
    """Find timm's architectures within a budget, measured on this machine, for the student of a recipe."""
    from meco_timm.planning import PATTERNS, find_students, parse_budget, print_students

    found = find_students(parse_budget(budget), image_size, pattern or PATTERNS, results, top)
    print_students(found, image_size)
