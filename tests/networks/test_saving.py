"""A student as a timm checkpoint: plain timm gives it back exactly, and the config says what it is and no more."""

import json
from pathlib import Path

import pytest
import timm
import torch
from conftest import contents, tree

from meco_timm.networks.saving import export
from meco_timm.networks.streams import Stream, student_stream
from meco_timm.recipe.networks import Network
from meco_timm.recipe.recipe import Alignment
from meco_timm.recipe.sections import Data

NAMES = ["circle", "cross", "dash"]
DATA = Data(source="x", image_size=48, crop_pct=0.9, interpolation="bilinear")


def make(name: str, args: dict | None = None, size: int = 48) -> Stream:
    return student_stream(Network(model=name, args=args or {}), Alignment(blocks=0), 3, size, seed=5).eval()


def save(stream: Stream, folder: Path, **extra: object) -> Path:
    export(stream, folder, NAMES, DATA, extra)
    return folder


@pytest.mark.parametrize(
    ("name", "args"),
    [
        ("test_resnet", {}),
        ("test_vit", {}),
        ("test_efficientnet", {"drop_rate": 0.2}),
        ("test_mambaout", {}),
    ],
)
def test_plain_timm_gives_the_student_back(tmp_path, name, args):
    stream = make(name, args)
    model = timm.create_model(f"local-dir:{save(stream, tmp_path / 'student')}", pretrained=True).eval()
    state = model.state_dict()
    assert state.keys() == stream.model.state_dict().keys()
    assert all(torch.equal(state[name], tensor) for name, tensor in stream.model.state_dict().items())
    config = timm.data.resolve_model_data_config(model)
    assert config["input_size"] == (3, 48, 48)
    assert (config["crop_pct"], config["interpolation"], config["crop_mode"]) == (0.9, "bilinear", "center")
    assert (tuple(config["mean"]), tuple(config["std"])) == tuple(
        tuple(stream.data_config[key]) for key in ("mean", "std")
    )
    image = torch.randint(0, 256, (2, 3, 48, 48), dtype=torch.uint8)
    mean, std = (torch.tensor(config[key]).view(1, 3, 1, 1) for key in ("mean", "std"))
    with torch.no_grad():
        assert torch.equal(model((image / 255 - mean) / std), stream.model(stream.prepare(image)))


def test_the_config_says_what_it_is_and_inherits_nothing(tmp_path):
    """timm's default tag of the architecture has a licence, papers and an address: another network's."""
    assert timm.get_pretrained_cfg("test_resnet").tag == "r160_in1k"
    config = json.loads((save(make("test_resnet"), tmp_path / "student") / "config.json").read_text())
    assert (config["architecture"], config["num_classes"]) == ("test_resnet", 3)
    assert config["label_names"] == NAMES
    cfg = config["pretrained_cfg"]
    assert (cfg["tag"], cfg["num_classes"], cfg["input_size"]) == ("meco", 3, [3, 48, 48])
    assert not cfg.keys() & {"license", "origin_url", "paper_ids", "paper_name", "hf_hub_id", "url", "description"}
    assert "in1k" not in json.dumps(config)


def test_model_arguments_are_kept(tmp_path):
    stream = make("test_vit", {"global_pool": "avg"}, size=64)
    folder = save(stream, tmp_path / "student")
    assert json.loads((folder / "config.json").read_text())["model_args"]["img_size"] in (64, [64, 64])
    model = timm.create_model(f"local-dir:{folder}", pretrained=True)
    assert model.global_pool == "avg"
    assert model(torch.zeros(1, 3, 64, 64)).shape == (1, 3)


def test_the_files_and_no_others(tmp_path):
    folder = save(make("test_resnet"), tmp_path / "student", **{"README.md": "text", "made_by.json": {"a": 1}})
    assert tree(tmp_path) == {f"student/{name}" for name in ("config.json", "model.safetensors", "README.md",
                                                             "made_by.json")}  # fmt: skip
    assert (folder / "README.md").read_text() == "text"
    assert json.loads((folder / "made_by.json").read_text()) == {"a": 1}


def test_the_folder_appears_whole_or_not_at_all(tmp_path, monkeypatch):
    """Interrupted while writing, an export leaves the older folder as it was; the next one tidies up."""
    folder = save(make("test_resnet"), tmp_path / "student")
    before = contents(folder)

    def stop(*args: object) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr("meco_timm.networks.saving.move_into_place", stop)
        with pytest.raises(KeyboardInterrupt):
            save(make("test_vit"), folder)
    assert contents(folder) == before
    save(make("test_vit"), folder)
    assert json.loads((folder / "config.json").read_text())["architecture"] == "test_vit"
    assert [p.name for p in tmp_path.iterdir()] == ["student"]


def test_the_stream_itself_is_left_as_it_is(tmp_path):
    stream = make("test_resnet").to(memory_format=torch.channels_last).bfloat16()
    before = {name: tensor.clone() for name, tensor in stream.state_dict().items()}
    folder = save(stream, tmp_path / "student")
    assert all(torch.equal(tensor, before[name]) for name, tensor in stream.state_dict().items())
    assert stream.model.fc.weight.dtype == torch.bfloat16
    model = timm.create_model(f"local-dir:{folder}", pretrained=True)
    assert {p.dtype for p in model.parameters()} == {torch.float32}
