"""`meco-timm latency`: medians and percentiles of calls, by runtime, batch and threads."""

import time

import pytest
import torch

from meco_timm.cli import main
from meco_timm.evaluation import measure_latency, torch_threads
from meco_timm.hub import latency_table


def test_median_and_95th_percentile_of_calls():
    pauses = iter([0.0] * 3 + [0.004] * 18 + [0.05] * 2 + [0.004] * 1000)

    def network(image):
        time.sleep(next(pauses))
        return image

    found = measure_latency(network, torch.zeros(1), seconds=0.0, least=20)
    assert 4 <= found.median < 15
    assert found.p95 > 40


def test_threads_are_put_back():
    before = torch.get_num_threads()
    with torch_threads(before + 1):
        assert torch.get_num_threads() == before + 1
    assert torch.get_num_threads() == before


def test_every_runtime_batch_and_number_of_threads_has_a_line(ended, capsys, monkeypatch):
    pytest.importorskip("onnxruntime")
    pytest.importorskip("onnxscript")
    monkeypatch.setattr(latency_table, "measure_latency", lambda *_: latency_table.Latency(2.0, 3.0))
    assert main(["latency", str(ended), "test_vit", "--size", "32"]) == 0
    lines = [line.split() for line in capsys.readouterr().out.splitlines() if "int8" in line or "PyTorch" in line]
    assert {line[0] for line in lines} == {"run", "test_vit"}
    assert {tuple(line[-5:-3]) for line in lines} >= {("1", "1"), ("32", "1")}
    assert all(line[-3:] == ["2", "3", "500"] for line in lines if line[-5] == "1")
