"""Several processes on the CPU (gloo), and accumulated parts: the same numbers as one process and one batch."""

from pathlib import Path
from typing import Any

import pytest
import torch
from helpers import processes
from helpers.launch import finished, launch


@pytest.fixture(scope="module")
def one(shapes: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """20 steps of one process with batches of 16."""
    out = tmp_path_factory.mktemp("one") / "out.pt"
    processes.take_steps(str(shapes), str(out), 16, 1)
    return torch.load(out, weights_only=True)


def assert_equal(found: dict[str, Any], expected: dict[str, Any]) -> None:
    """Losses and final weights, to 1e-5: a student with layer norm, four blocks, embedding,
    adversary and labels.

    Batch norm sees each part alone and cannot be equal. Nor are CNNs with other norms, in this way: with AdamW their
    rounding differences grow a hundredfold in these steps, with plain SGD they stay below 3e-5.
    """
    terms = {"similarity/logits", "similarity/embedding", "similarity/3", "adversary/logits", "adversary/0"}
    assert terms < found["losses"][0].keys()
    for step, (losses, wanted) in enumerate(zip(found["losses"], expected["losses"], strict=True)):
        for name, value in wanted.items():
            assert losses[name] == pytest.approx(value, rel=1e-5, abs=1e-5), (step, name)
    for name, value in expected["state"].items():
        torch.testing.assert_close(found["state"][name], value, rtol=1e-5, atol=1e-5, msg=name)


FSDP2 = {"ACCELERATE_USE_FSDP": "true", "FSDP_VERSION": "2", "FSDP_AUTO_WRAP_POLICY": "NO_WRAP"}


@pytest.mark.parametrize(
    ("kind", "batch_size", "accumulation"), [("MULTI_CPU", 8, 1), ("MULTI_CPU", 4, 2), ("FSDP", 4, 2)]
)
def test_two_processes_equal_one_with_all_their_images(shapes, tmp_path, one, kind, batch_size, accumulation):
    """Half-way, all is saved and taken up by a new training."""
    words = [str(shapes), str(tmp_path / "out.pt"), str(batch_size), str(accumulation)]
    finished(launch(*words, processes=2, program="steps", **(FSDP2 if kind == "FSDP" else {})))
    found = torch.load(tmp_path / "out.pt", weights_only=True)
    assert (found["processes"], found["kind"]) == (2, kind)
    assert_equal(found, one)
    for name, weight in found["student"].items():
        torch.testing.assert_close(weight, one["state"][f"student.{name}"], rtol=1e-5, atol=1e-5, msg=name)


def test_four_accumulated_parts_equal_one_batch_of_all(shapes, tmp_path, one):
    processes.take_steps(str(shapes), str(tmp_path / "out.pt"), 4, 4)
    assert_equal(torch.load(tmp_path / "out.pt", weights_only=True), one)
