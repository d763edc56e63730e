"""Embeddings of image files: those of plain timm, in a parquet file, and the nearest."""

from pathlib import Path

import datasets
import numpy as np
import pytest
import timm
from conftest import draw_image
from helpers.checkpoints import local_dir, network
from PIL import Image

from meco_timm.cli import main
from meco_timm.evaluation import embed


@pytest.fixture
def photos(tmp_path: Path) -> Path:
    (tmp_path / "photos").mkdir()
    for i in range(6):
        draw_image(i % 3, 900 + i).save(tmp_path / "photos" / f"{i} ü.png")
    return tmp_path / "photos"


@pytest.fixture
def model(tmp_path: Path) -> str:
    return local_dir(tmp_path / "net", network("test_resnet", 0))


def test_the_file_has_what_timm_gives(model, photos, tmp_path, capsys):
    output = tmp_path / "all.parquet"
    assert main(["embed", model, str(photos), "-o", str(output)]) == 0
    net = timm.create_model(model, pretrained=True, num_classes=0).eval()
    transform = timm.data.create_transform(**timm.data.resolve_model_data_config(net), is_training=False)
    assert capsys.readouterr().out == f"{output}: 6 embeddings of length {net.num_features}\n"
    rows = datasets.Dataset.from_parquet(str(output))
    assert rows.column_names == ["path", "embedding"]
    assert rows["path"][:] == sorted(map(str, photos.iterdir()))
    for row in rows:
        wanted = net(transform(Image.open(row["path"]).convert("RGB"))[None])[0].detach()
        np.testing.assert_allclose(row["embedding"], wanted, rtol=1e-4, atol=1e-5)


def test_nearest_of_files_and_of_a_file_that_was_written(model, photos, tmp_path, capsys):
    output, query = str(tmp_path / "all.parquet"), str(photos / "0 ü.png")
    assert main(["embed", model, str(photos), "-o", output, "--nearest", query, "--count", "3"]) == 0
    _, *lines = capsys.readouterr().out.splitlines()
    assert len(lines) == 3
    found = embed(model, [str(photos)])
    unit = found.vectors / np.linalg.norm(found.vectors, axis=1, keepdims=True)
    cosine = unit @ unit[found.files.index(query)]
    order = [i for i in np.argsort(-cosine) if found.files[i] != query][:3]
    assert [line.split("  ", 1)[1] for line in lines] == [found.files[i] for i in order]
    assert [float(line.split()[0]) for line in lines] == pytest.approx(cosine[order], abs=1e-3)
    assert main(["embed", model, output, "--nearest", query, "--count", "3"]) == 0
    assert capsys.readouterr().out.splitlines() == lines


def test_what_cannot_be_embedded(model, photos, tmp_path, capsys):
    (photos / "broken.png").write_bytes(b"not an image")
    output = str(tmp_path / "all.parquet")
    assert main(["embed", model, str(photos), "-o", output]) == 0
    said = capsys.readouterr()
    assert "broken.png: left out: cannot identify image file" in said.err
    assert "6 embeddings" in said.out
    other = local_dir(tmp_path / "other", network("test_vit", 3))
    (tmp_path / "wrong.parquet").write_bytes(b"no parquet")
    for arguments, expected in [
        ([model, str(photos)], "write --output FILE.parquet, or --nearest IMAGE"),
        ([other, output, "--nearest", str(photos / "0 ü.png")], f"has the embeddings of {model}, not of {other}"),
        ([model, str(tmp_path / "wrong.parquet"), "-o", output], "is no file of embeddings"),
        ([model, str(photos / "broken.png"), "-o", output], "none of the 1 image(s) can be read"),
        ([model, "nothing.png", "-o", output], "embed: there is no file or folder nothing.png"),
        ([model, str(photos), "-o", str(tmp_path / "wrong.parquet/a")], "--output: "),
    ]:
        assert main(["embed", *arguments]) == 2
        assert expected in capsys.readouterr().err
