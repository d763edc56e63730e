"""benchmarks.gpu in small on the CPU: every part, each in a process of its own; a part that fails hides no other."""

import json
import subprocess
import sys
from pathlib import Path

import pytest
from conftest import ROOT

from benchmarks import gpu
from benchmarks.gpu_measure import Findings


def test_every_part_runs_on_the_cpu(tmp_path):
    file = tmp_path / "gpu.json"
    command = [sys.executable, "-m", "benchmarks.gpu", "--json", str(file)]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=1500)
    assert done.returncode == 0, done.stderr[-3000:]
    assert done.stdout.startswith("meco_timm on the CPU")
    for name in gpu.SHARES:
        assert f"\n{name}: as expected (" in done.stdout, done.stdout
    found = json.loads(file.read_text())
    assert {row["part"] for row in found["rows"]} == set(gpu.SHARES)
    reads = [row for row in found["rows"] if "reads of three steps" in row.get("form", "")]
    assert len(reads) == 5
    assert all(row["waits"] == 0 for row in reads)
    assert found["figures"]["two processes/largest difference"] < 1e-3
    assert found["figures"]["resume/largest difference"] == 0


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


@pytest.mark.parametrize("words", [["--parts", "speed"], ["--minutes", "soon"]])
def test_wrong_options_are_refused(monkeypatch, capsys, words):
    monkeypatch.setattr(sys, "argv", ["gpu", *words])
    with pytest.raises(SystemExit) as stop:
        gpu.main()
    assert stop.value.code == 2
    assert "invalid" in capsys.readouterr().err
