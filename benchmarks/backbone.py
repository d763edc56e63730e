"""What a backbone from unlabelled images is worth: arms by k-NN and linear probe, then fine-tuned with few labels.

A study (benchmarks/studies/backbone.yaml) is a recipe and overrides for each arm, in both of which `{seed}` is the
run's, and the settings of the fine-tuning. Each run is a plain `distill`. What has ended is kept in FOLDER and never
repeated. Labels are used to measure, and by the fine-tuning.

    OMP_NUM_THREADS=1 python -m benchmarks.backbone benchmarks/studies/backbone.yaml --labels 10 50 0
"""

import argparse
import json
import time
from collections.abc import Callable
from pathlib import Path
from statistics import mean
from typing import Any, NamedTuple

import timm
import torch
import yaml
from accelerate import Accelerator
from timm.models import save_for_hf

from benchmarks.form import Row, report, table
from meco_timm import distill, evaluate, load_recipe
from meco_timm.common import log_to_screen
from meco_timm.data import load_data
from meco_timm.evaluation import paired_interval
from meco_timm.evaluation.embedding import embed
from meco_timm.evaluation.features import knn_accuracy, probe_accuracy
from meco_timm.recipe import named_teachers
from meco_timm.training import LabelTraining, train_teachers

HELD_OUT = 5  # every fifth training image is a query of "validation"
Found = dict[str, float]


class Study(NamedTuple):
    """A study's file. base: the arm that the others are compared with, and that is fine-tuned."""

    base: str
    seeds: int
    recipe: dict[str, Any]
    arms: dict[str, list[str]]
    fine_tuning: dict[str, Any]

    @property
    def images(self) -> str:
        """The folder of class folders."""
        return str(self.recipe["data"]["source"])


def kept(file: Path, make: Callable[..., Found], *args: Any) -> Found:
    """The result in a file; made now, with its CPU seconds, if it is not there."""
    if not file.exists():
        began = time.process_time()
        found = make(*args) | {"CPU s": time.process_time() - began}
        file.write_text(json.dumps(found))
        print(file.stem, {name: round(value, 2) for name, value in found.items()}, flush=True)
    return dict(json.loads(file.read_text()))


def quality(network: str, images: str) -> Found:
    """k-NN and linear probe of a network's pooled features on the test split, in per cent."""
    features = {}
    for split in ("train", "test"):
        found = embed(network, [f"{images}/{split}"])
        names = [Path(file).parent.name for file in found.files]
        labels = torch.tensor([sorted(set(names)).index(name) for name in names])
        features[split] = torch.from_numpy(found.vectors), labels
    (x, y), test = features["train"], features["test"]
    held = torch.arange(len(x)) % HELD_OUT == 0
    validation = knn_accuracy(x[~held], y[~held], x[held], y[held])
    return {"k-NN": knn_accuracy(x, y, *test), "probe": probe_accuracy(x, y, *test), "validation": validation}


def run_arm(study: Study, arm: str, seed: int, folder: Path) -> Found:
    """Train the arm's student and measure it."""
    words = [word.replace("{seed}", str(seed)) for word in study.arms[arm]]
    student = student_of(arm, seed, folder)
    recipe = folder / f"{student.parent.name}.yaml"
    recipe.write_text(yaml.safe_dump(study.recipe).replace("{seed}", str(seed)))
    began = time.process_time()
    distill(load_recipe(recipe, [*words, f"seed={seed}", f"run={student.parent}", f"zoo.folder={folder / 'zoo'}"]))
    training = time.process_time() - began
    return quality(f"local-dir:{student}", study.images) | {"training CPU s": training}


def student_of(arm: str, seed: int, folder: Path) -> Path:
    return folder / "runs" / f"{arm.replace(', ', '-').replace(' ', '-')}-{seed}" / "student"


def untrained(study: Study, seed: int, folder: Path) -> Found:
    """The student's network with random weights."""
    student, place = study.recipe["student"], folder / f"untrained-{seed}"
    torch.manual_seed(seed)
    network = timm.create_model(student["model"], num_classes=0, **student["args"])
    size = study.recipe["data"]["image_size"]
    config = {"input_size": (3, size, size), "crop_pct": 1.0}
    save_for_hf(network, str(place), model_args=student["args"], safe_serialization=True, data_config=config)
    return quality(f"local-dir:{place}", study.images)


def fine_tune(study: Study, start: dict[str, Any], labels: int, loop: dict[str, Any], seed: int, file: Path) -> Found:
    """Test top-1 after training on so many labels a class (0: all)."""
    recipe = {
        "data": study.fine_tuning["data"] | {"labelled": f"{labels} per class" if labels else None},
        "teachers": [start | {"train": True}],
        "student": start,
        "zoo": {"folder": str(file.parent / "zoo"), "loop": study.fine_tuning["loop"] | loop},
    }
    file.write_text(yaml.safe_dump(recipe))
    loaded = load_recipe(file, [f"seed={seed}"])
    data = load_data(loaded.data, seed)
    training = LabelTraining(data, loaded.data, seed, Path(loaded.zoo.folder), Accelerator())
    (network,) = train_teachers(named_teachers(loaded.teachers), training).values()
    return {"top-1": evaluate(network.model, study.images, "test").top1}


def fine_tunings(study: Study, labels: int, seed: int, folder: Path) -> dict[str, Found]:
    """Test top-1 from each start of the study: an arm's backbone, or random weights."""
    found = {}
    for name, settings in study.fine_tuning["starts"].items():
        start = dict(study.recipe["student"])
        if arm := settings["arm"]:
            start = {"model": f"local-dir:{student_of(arm, seed, folder)}"}
        file = folder / f"tuned-{labels}-{name.replace(', ', '-').replace(' ', '-')}-{seed}.json"
        recipe = file.with_suffix(".yaml")
        found[name] = kept(file, fine_tune, study, start, labels, settings["loop"], seed, recipe)
    return found


def compared(arms: dict[str, dict[int, Found]], base: str, keys: list[str]) -> list[Row]:
    """A row for each arm: means over seeds, and paired differences to the base in the first key."""
    rows: list[Row] = []
    for arm, found in arms.items():
        if not found:  # the base, where only others were asked for
            continue
        row: Row = {"arm": arm, "seeds": len(found)}
        here = [key for key in keys if all(key in one for one in found.values())]
        row |= {key: mean(one[key] for one in found.values()) for key in here}
        paired = [found[seed][keys[0]] - arms[base][seed][keys[0]] for seed in found if seed in arms[base]]
        row[f"{keys[0]} − {base}"] = str(paired_interval(paired)) if arm != base and paired else None
        rows.append(row)
    return rows


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("study", type=Path)
    parser.add_argument("--arms", nargs="*", metavar="ARM", help="only these")
    parser.add_argument("--seeds", nargs="+", type=int, metavar="SEED")
    parser.add_argument("--labels", nargs="*", type=int, default=[], help="labels a class for fine-tuning; 0: all")
    parser.add_argument("--others", nargs="*", default=[], metavar="FOLDER", help="measure these timm checkpoints too")
    parser.add_argument("--folder", type=Path, default=Path("runs/backbone"))
    parser.add_argument("--json", type=Path, metavar="FILE")
    args = parser.parse_args()
    torch.set_num_threads(1)
    study, folder = Study(**yaml.safe_load(args.study.read_text())), args.folder
    folder.mkdir(parents=True, exist_ok=True)
    arms: dict[str, dict[int, Found]] = {study.base: {}, "random weights": {}}
    tuned: dict[str, dict[int, Found]] = {}
    with log_to_screen(False):
        for seed in args.seeds or range(study.seeds):
            untrained_file = folder / f"untrained-{seed}.json"
            arms["random weights"][seed] = kept(untrained_file, untrained, study, seed, folder)
            for arm in args.arms or study.arms:
                file = folder / f"{student_of(arm, seed, folder).parent.name}.json"
                arms.setdefault(arm, {})[seed] = kept(file, run_arm, study, arm, seed, folder)
            for labels in args.labels:
                for start, found in fine_tunings(study, labels, seed, folder).items():
                    tuned.setdefault(f"{labels or 'all'} labels a class, {start}", {})[seed] = found
        for other in args.others:
            file = folder / f"other-{other.strip('/').replace('/', '_')}.json"
            arms[other] = {0: kept(file, quality, f"local-dir:{other}", study.images)}
    rows = compared(arms, study.base, ["k-NN", "probe", "validation", "training CPU s"])
    figures = {f"knn/{row['arm']}": row["k-NN"] for row in rows}
    for labels in args.labels:
        name = f"{labels or 'all'} labels a class"
        same = {arm: found for arm, found in tuned.items() if arm.startswith(name)}
        print(f"{table(compared(same, f'{name}, random', ['top-1']))}\n")
    report("backbone", rows, figures, args.json)


if __name__ == "__main__":
    main()
