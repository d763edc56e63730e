"""Does every timm network work, as a student and as a teacher, with the project's own stream?

    python -m benchmarks.coverage                      # all of timm.list_models(), one core, about half an hour
    python -m benchmarks.coverage --names 'vit_*' --json vit.json
    python -m benchmarks.coverage --log coverage.jsonl # writes each row at once and, run again, goes on from there

Without weights, on the meta device, for each network:
- the stream's logits are made by the same operations from the same parameters as `model(x)`'s (provenance.py), in
  training as a student with a new head of 10 classes, in evaluation as a teacher with its own;
- gradients of the student's logits reach the same parameters;
- blocks are taken from B×C×H×W maps with the channels that timm promises, and are aligned to B×d;
- images of another size arrive at the network in its own;
- without a head its embedding is made as timm's `num_classes=0` makes it.

Networks that need values on the way (networks.NEED_VALUES) run with random weights on the CPU. The smallest network of
each of timm's files, if it is small, also computes: logits equal to 1e-5. A network is refused where the project says
why it cannot be a student or a teacher (UserError); anything else is a failure.
"""

import fnmatch
import json
import sys
import time
from collections import Counter
from pathlib import Path
from typing import Any
from unittest.mock import patch

import timm
import torch
from torch import Tensor, nn

from benchmarks.form import Row, arguments, report
from benchmarks.provenance import Provenance, reached
from meco_timm.common.errors import UserError
from meco_timm.networks.streams import Outputs, Stream, student_stream, teacher_stream
from meco_timm.recipe.networks import Network, Teacher
from meco_timm.recipe.recipe import Alignment

ALIGNMENT = Alignment(method="grid", length=256, blocks=3)  # every network of timm has as many
HEADLESS = Alignment(method="grid", length=256, blocks=3, embedding="linear")
CLASSES = 10
BATCH = 2
OTHER_SIZE = 40  # pixels of the images that arrive, unlike any network's own
SMALL = 12_000_000  # parameters of networks that also compute, at most
COLUMNS = ("name", "file", "parameters", "seconds", "difference", "result", "reason")
RESULTS = ("passed", "refused", "failed")
SIZES = {"gemma4_vit_*": 192}  # pixels, of those that run with values; 768 would take a quarter of an hour


def check(name: str, trace: Provenance) -> tuple[str, Stream | None]:
    """Check a network in both roles → (why it is refused as one of them, or ''; a stream that was made).

    Raises:
        AssertionError: the stream does not give what the network gives.
    """
    refused, stream = [], None
    for role, make in (("student", make_student), ("teacher", make_teacher)):
        trace.forget()
        trace.following = False
        try:
            with trace:
                stream = make(name)
        except UserError as error:
            refused.append(str(error))
            continue
        trace.following = True
        stream.requires_grad_(role == "student").train(role == "student")
        with torch.set_grad_enabled(role == "student"):
            compare(stream, trace)
    if not refused:
        compare_embedding(name, trace)
    return " ".join(refused), stream


@torch.no_grad()
def compare_embedding(name: str, trace: Provenance) -> None:
    """The headless stream's embedding against the plain network's output in evaluation: made by the same operations,
    or, of networks that average two equal heads, of the same values."""
    trace.forget()
    trace.following = False
    with trace:
        stream = student_stream(Network(model=name), HEADLESS, 0, wanted_size(name), weightless=True).eval()
    trace.following = True
    image = torch.zeros(BATCH, 3, OTHER_SIZE, OTHER_SIZE, device=stream.mean.device)
    with trace:
        trace.name([("image", image), *stream.named_parameters(), *stream.named_buffers()])
        plain, found = stream.model(stream.prepare(image)), stream(image).embedding
    assert found is not None
    assert found.shape == plain.shape, f"embedding {tuple(found.shape)}, not {tuple(plain.shape)}"
    if trace.number(plain) == trace.number(found):
        return
    stream = student_stream(Network(model=name), HEADLESS, 0, wanted_size(name)).eval()
    image = torch.rand(BATCH, 3, OTHER_SIZE, OTHER_SIZE, generator=torch.Generator().manual_seed(0))
    plain, found = stream.model(stream.prepare(image)), stream(image).embedding
    assert torch.equal(plain, found), "the embedding is not that of num_classes=0"


def make_student(name: str, weightless: bool = True) -> Stream:
    """As a recipe's student of 10 classes, at the network's own size."""
    return student_stream(Network(model=name), ALIGNMENT, CLASSES, wanted_size(name), weightless=weightless)


def make_teacher(name: str) -> Stream:
    """As a recipe's teacher, whose first 10 classes the student learns, and as if somebody had published weights."""
    teacher = Teacher(model=name, classes=list(range(CLASSES)), size=size_of(name))
    with patch("timm.is_model_pretrained", return_value=True):
        return teacher_stream(teacher, ALIGNMENT, [str(i) for i in range(CLASSES)], weightless=True)


def wanted_size(name: str) -> int:
    """The network's own size, or a smaller one."""
    return size_of(name) or timm.get_pretrained_cfg(name, allow_unregistered=False).input_size[-1]


def size_of(name: str) -> int | None:
    return next((size for pattern, size in SIZES.items() if fnmatch.fnmatch(name, pattern)), None)


def compare(stream: Stream, trace: Provenance) -> None:
    """The stream against the plain network, operation by operation."""
    device = stream.mean.device
    image = torch.zeros(BATCH, 3, OTHER_SIZE, OTHER_SIZE, device=device)
    leaves = [("image", image), *stream.named_parameters(), *stream.named_buffers()]
    with trace:
        trace.name(leaves)  # buffers too, as training writes into them
        x = stream.prepare(image)
        plain = stream.mapped(stream.model(x)) if stream.has_logits else None
        trace.name(leaves)
        outputs, maps = run(stream, image)
    assert tuple(x.shape[-2:]) == (stream.size, stream.size), f"the network sees {tuple(x.shape)}"
    check_blocks(stream, outputs.blocks, maps)
    if plain is None:
        assert outputs.logits is None
        return
    assert outputs.logits is not None
    assert outputs.logits.shape == (BATCH, CLASSES), f"logits {tuple(outputs.logits.shape)}"
    assert trace.number(plain) == trace.number(outputs.logits), "logits are made otherwise than model(x)'s"
    if plain.requires_grad:
        names = {id(p): n for n, p in stream.named_parameters()}
        lost = reached(plain) - reached(outputs.logits)
        assert not lost, f"no gradient for {', '.join(names[i] for i in lost)}"


def run(stream: Stream, image: Tensor) -> tuple[Outputs, list[Tensor]]:
    """The stream's outputs, and the maps that it took from its network."""
    taken: list[Tensor] = []
    intermediates = stream.model.forward_intermediates

    def listening(*args: Any, **options: Any) -> Any:
        result = intermediates(*args, **options)
        taken.extend(result if options.get("intermediates_only") else result[1])
        return result

    with patch.object(stream.model, "forward_intermediates", listening):
        return stream(image), taken


def check_blocks(stream: Stream, blocks: list[Tensor], maps: list[Tensor]) -> None:
    wanted = [(BATCH, ALIGNMENT.length)] * ALIGNMENT.blocks
    assert [tuple(b.shape) for b in blocks] == wanted, f"blocks {[tuple(b.shape) for b in blocks]}"
    promised = [stream.model.feature_info[i]["num_chs"] for i in stream.taps]
    got = [tuple(m.shape) for m in maps]
    assert [len(s) for s in got] == [4] * len(got), f"maps {got}"
    assert [s[1] for s in got] == promised, f"maps {got} have not {promised} channels"


@torch.no_grad()
def compare_values(name: str) -> float:
    """Largest difference of the stream's logits from the plain network's in evaluation, over the largest logit."""
    stream = make_student(name, weightless=False)
    generator = torch.Generator().manual_seed(0)
    light = torch.tensor([0.2, 1.0]).view(BATCH, 1, 1, 1)
    image = light * torch.rand(BATCH, 3, OTHER_SIZE, OTHER_SIZE, generator=generator)
    enliven(stream, image, generator)
    plain = stream.model(stream.prepare(image))
    largest = plain.abs().max()
    assert (plain[0] - plain[1]).abs().max() > 1e-3 * largest > 0, "the logits say too little to be compared"
    difference = ((stream.logits(image) - plain).abs().max() / largest).item()
    assert difference < 1e-5, f"logits differ by {difference:.1e} of the largest"
    return difference


def enliven(stream: Stream, image: Tensor, generator: torch.Generator) -> None:
    """Fresh weights often say nothing (heads of zeros, scales of 1e-6, statistics of no image): stir them up."""
    for parameter in stream.parameters():
        parameter.add_(0.03 * torch.randn(parameter.shape, generator=generator))
    for module in stream.modules():
        if isinstance(module, nn.modules.batchnorm._BatchNorm):
            module.momentum = 1.0
    stream.train()(image)
    stream.eval()


def examine(name: str, trace: Provenance) -> Row:
    """The row of one network. Never raises, because one network must not stop the others."""
    began = time.process_time()
    row: Row = {"name": name, "file": "", "parameters": 0, "result": "passed", "reason": ""}
    try:
        row["reason"], stream = check(name, trace)
        row["result"] = "refused" if row["reason"] else "passed"
        if stream is not None:
            row |= {"file": type(stream.model).__module__, "parameters": stream.parameter_count}
    except Exception as error:
        row |= {"result": "failed", "reason": f"{type(error).__name__}: {error}"}
    return row | {"seconds": round(time.process_time() - began, 2)}


def add_values(rows: list[Row]) -> None:
    """The smallest network of each of timm's files also computes, if it is small."""
    smallest: dict[str, Row] = {}
    for row in sorted(rows, key=lambda row: row["parameters"]):
        if row["result"] == "passed" and row["parameters"] <= SMALL:
            smallest.setdefault(row["file"], row)
    for row in smallest.values():
        try:
            row["difference"] = compare_values(row["name"])
        except Exception as error:
            row |= {"result": "failed", "reason": f"{type(error).__name__}: {error}"}
        print(f"values {row['result']} {row['name']}", file=sys.stderr)


def main() -> None:
    parser = arguments(__doc__, rounds=1)
    parser.add_argument("--names", default="*", help="a pattern of timm names (default all)")
    parser.add_argument("--log", type=Path, metavar="FILE", help="a line per network; what is there is not done again")
    args = parser.parse_args()
    torch.set_num_threads(1)

    names = fnmatch.filter(timm.list_models(), args.names)
    rows = read_log(args.log)
    trace = Provenance()
    for i, name in enumerate(names):
        if name not in rows:
            rows[name] = examine(name, trace)
            if args.log:
                with args.log.open("a") as log:
                    log.write(json.dumps(rows[name]) + "\n")
        print(f"{i + 1}/{len(names)} {rows[name]['result']} {name}", file=sys.stderr)
    chosen: list[Row] = [rows[name] for name in names]
    add_values(chosen)
    chosen = sorted(({column: row.get(column) for column in COLUMNS} for row in chosen), key=in_order)
    counts = Counter(row["result"] for row in chosen)
    figures: dict[str, float] = {result: counts[result] for result in RESULTS}
    report("coverage", chosen, figures, args.json)
    sys.exit(figures["failed"] > 0)


def in_order(row: Row) -> int:
    """What people want to read last: it stays on the screen."""
    return RESULTS.index(row["result"])


def read_log(file: Path | None) -> dict[str, Row]:
    if file is None or not file.exists():
        return {}
    return {row["name"]: row for row in map(json.loads, file.read_text().splitlines())}


if __name__ == "__main__":
    main()
