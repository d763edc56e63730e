"""benchmarks.gpu in small on the CPU: its parts; a part that fails hides no other."""

import json
import os
import sys
from pathlib import Path
from typing import Any

import pytest
from accelerate.state import AcceleratorState
from conftest import ROOT

from benchmarks import gpu, gpu_runs, gpu_steps
from benchmarks.gpu_measure import Findings


@pytest.fixture
def command(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Any:
    """Run the command, in which each of these parts must be as expected, and return what it writes."""

    def written(*parts: str) -> dict[str, Any]:
        file = tmp_path / "gpu.json"
        monkeypatch.setattr(sys, "argv", ["gpu", "--json", str(file), "--part", *parts])
        gpu.main()
        printed = capsys.readouterr().out
        assert printed.startswith("meco_timm on the CPU")
        for name in parts:
            assert f"\n{name}: as expected (" in printed
        found = json.loads(file.read_text())
        assert {row["part"] for row in found["rows"]} == set(parts)
        return found

    return written


def test_a_part_runs_in_its_own_process(command):
    assert command("loader")["figures"]["loader/32 px, PNG, 1 workers"] > 0


@pytest.mark.skipif("SLOW_TESTS" not in os.environ, reason="minutes of whole runs: set SLOW_TESTS=1")
def test_whole_runs(command):
    parts = ("quickstart", "resume", "two processes", "fsdp2", "store", "backbone")
    found = command(*parts)
    assert found["figures"]["fsdp2/largest difference"] < 1e-3
    assert found["figures"]["two processes/largest difference"] < 1e-3
    assert found["figures"]["resume/largest difference"] == 0


def test_no_step_waits_for_the_device(tmp_path, monkeypatch):
    monkeypatch.setattr(gpu_steps, "WAYS", gpu_steps.WAYS[:2])  # compiling takes half a minute
    findings = Findings(tmp_path / "out.json", seconds=900, earlier={})
    assert gpu_steps.step(findings) == "as expected"
    reads = [row for row in findings.rows if "reads of three steps" in row.get("form", "")]
    assert len(reads) == len(gpu_steps.FORMS | gpu_steps.OPTIONS)
    assert all(row["waits"] == 0 for row in reads)


def test_teachers_are_measured_beside_the_plan(tmp_path):
    findings = Findings(tmp_path / "out.json", seconds=900, earlier={})
    assert gpu_steps.teachers(findings) == "as expected"
    assert all(row["images/s"] > 0 and row["plan GiB"] > 0 for row in findings.rows)


def test_peers_are_measured_beside_ours(tmp_path, monkeypatch):
    monkeypatch.setattr(gpu_steps, "COMPILED", False)  # seconds for each side
    findings = Findings(tmp_path / "out.json", seconds=900, earlier={})
    assert gpu_steps.peers(findings) == "as expected"
    sides = {row["side"] for row in findings.rows}
    assert {"timm logits, 1", "timm features, 3", "ours logits, 1", "ours MEAL, 3 stored"} <= sides
    assert all(row["images/s"] > 0 for row in findings.rows)


def test_the_quickstart_in_every_precision(shapes, tmp_path, monkeypatch):
    """Here in this process, on the CPU, with a few images."""

    def trained(folder: Path, words: list[str], **environment: str) -> tuple[list[dict[str, Any]], str, float]:
        AcceleratorState._reset_state(reset_partial_state=True)
        own = [
            f"run={tmp_path / str(len(findings.rows))}",
            f"zoo.folder={tmp_path / 'zoo'}",
            f"data.source={shapes}",
            "data.labelled=20",
        ]
        assert gpu_runs.run([str(ROOT / "recipes/quickstart.yaml"), *own, *words, "--quiet"]) == 0
        return json.loads((tmp_path / str(len(findings.rows)) / "table.json").read_text())["rows"], "", 1.0

    findings = Findings(tmp_path / "out.json", seconds=900, earlier={})
    monkeypatch.setattr(gpu_runs, "trained", trained)
    assert gpu_runs.quickstart(findings) == "as expected"
    assert [row["run"] for row in findings.rows] == ["float32", "bf16", "bf16, compiled"]
    AcceleratorState._reset_state(reset_partial_state=True)  # else later tests would compute in bf16


def test_a_part_that_fails_or_takes_too_long_is_a_verdict(monkeypatch, tmp_path):
    monkeypatch.setattr(gpu, "ROOT", tmp_path)  # where there is no benchmarks.gpu
    monkeypatch.setenv("PYTHONPATH", "")
    monkeypatch.chdir(tmp_path)
    failed = gpu.run_part("step", 100, {})
    assert failed["verdict"] == "failed"
    assert "No module named" in failed["notes"][-1]
    (tmp_path / "benchmarks").mkdir()
    (tmp_path / "benchmarks/gpu.py").write_text(
        "import sys, time, pathlib\n"
        "out = sys.argv[sys.argv.index('--json') + 1]\n"
        'pathlib.Path(out).write_text(\'{"rows": [{"a": 1}], "notes": [], "figures": {}}\')\n'
        "time.sleep(60)\n"
    )
    late = gpu.run_part("step", 3, {})
    assert late["verdict"] == f"stopped after {late['seconds']} s"
    assert late["rows"] == [{"a": 1}]  # what it had found stays
    assert "step: stopped after" in gpu.page({"step": late})


def test_measurements_that_do_not_fit_any_more_are_left_out_with_a_note(tmp_path):
    findings = Findings(tmp_path / "out.json", seconds=0.0, earlier={})
    assert not findings.has_time("compiled")
    assert findings.notes == ["no time left for compiled: give more --minutes"]
    assert Findings(tmp_path / "out.json", seconds=60.0, earlier={}).has_time("compiled")
    findings.add({"form": "MEAL"})
    assert json.loads(Path(tmp_path, "out.json").read_text())["rows"] == [{"form": "MEAL"}]


@pytest.mark.parametrize("words", [["--part", "speed"], ["--minutes", "soon"]])
def test_wrong_options_are_refused(monkeypatch, capsys, words):
    monkeypatch.setattr(sys, "argv", ["gpu", *words])
    with pytest.raises(SystemExit) as stop:
        gpu.main()
    assert stop.value.code == 2
    assert "invalid" in capsys.readouterr().err
