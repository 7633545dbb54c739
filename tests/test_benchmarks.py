"""The benchmarks measure what they say, beside whom they say. How long anything takes is no test's business."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

BENCHMARKS = Path(__file__).parents[1] / "benchmarks"
SCRIPTS = sorted(path.name for path in BENCHMARKS.glob("*.py") if "__main__" in path.read_text())


def run(out: Path, script: str, *arguments: object, **environment: str) -> str:
    command = [sys.executable, BENCHMARKS / script, *map(str, arguments)]
    environment = {**os.environ, "BENCH_OUT": str(out), **environment}
    done = subprocess.run(command, env=environment, text=True, capture_output=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def figures(out: Path) -> Any:
    (file,) = out.glob("*.json")
    return json.loads(file.read_text())


def test_make_bench_runs_every_benchmark() -> None:
    target = (BENCHMARKS.parent / "Makefile").read_text().partition("\nbench:")[2].partition("\n\n")[0]
    assert {script for script in SCRIPTS if f"benchmarks/{script}" in target} == set(SCRIPTS)


def test_a_step_is_measured_beside_its_floor_and_its_peers_also_those_not_installed(tmp_path: Path) -> None:
    (tmp_path / "ray.py").write_text("raise ModuleNotFoundError('no ray here', name='ray')")
    case = {"parameters": 1001, "tensors": 2, "dtype": "bf16", "transport": "uds", "clients": 3}
    asked = [part for name, value in case.items() for part in (f"--{name}", value)]
    printed = run(tmp_path, "large_step.py", *asked, "--rounds", 2, PYTHONPATH=str(tmp_path))
    told = figures(tmp_path)
    ways = {"optimd, bf16 tensors", "optimd, f32 arrays", "optimd, f32 arrays, difference"}
    peers = {"gloo send/recv + fused AdamW", "torch RPC + fused AdamW", "FastAPI, the obvious way"}
    assert told["case"] == case
    assert ways | peers | {"floor: both"} <= set(told["rows"])
    assert all(told["rows"][row]["samples"] == 2 for row in peers)
    assert all(row["floor_s"] > 0 and row["optimd_s"] > 0 for row in told["rows"].values())
    assert told["absent"] == {"Ray actor + fused AdamW": "not installed"}
    assert "not installed" in printed
    assert told["machine"]["cores"] == os.cpu_count()


@pytest.mark.skipif(shutil.which("wrk") is None, reason="wrk is not installed")
def test_every_step_that_wrk_saw_acknowledged_is_on_record(tmp_path: Path) -> None:
    run(tmp_path, "many_clients.py", "--rounds", 1, "--seconds", 1, "--connections", 4)
    for (row,) in figures(tmp_path)["rounds"].values():
        assert row["acknowledged"] > 0
        assert row["refused"] == row["broken"] == 0
        assert row["acknowledged"] <= row["on_record"] == row["taken"]


def test_the_line_through_times_is_that_of_the_sizes(tmp_path: Path) -> None:
    run(tmp_path, "linear.py", "--sizes", 1000, 2000, "--rounds", 1)
    told = figures(tmp_path)
    for size, row in told["sizes"].items():
        assert row["line_s"] == pytest.approx(told["a_s"] + told["b_s"] * int(size))
        assert row["line_s"] == pytest.approx(row["median_s"])  # two points lie on their line


def test_memory_is_that_of_server_and_client(tmp_path: Path) -> None:
    run(tmp_path, "memory.py", "--parameters", 8_000_000, "--steps", 2)
    told = figures(tmp_path)
    assert len(told["peaks"]) == 3
    assert all(peak["server"] > 8_000_000 * 16 for peak in told["peaks"].values())
    assert all(peak["client"] >= 0 for peak in told["peaks"].values())


def test_every_kind_of_overlap_has_its_share(tmp_path: Path) -> None:
    run(tmp_path, "overlap.py", "--width", 64, "--layers", 2, "--batch", 8, "--rounds", 1)
    told = figures(tmp_path)
    assert set(told["hidden"]) == {"remote, overlap='push'", "remote, overlap=True"} < set(told["rows"])


def test_small_steps_are_measured_with_and_without_large_ones(tmp_path: Path) -> None:
    run(tmp_path, "side_by_side.py", "--large", 100_000, "--rounds", 1, "--seconds", 0.5)
    told = figures(tmp_path)
    assert set(told["large"]) == set(told["small"]) - {"alone"}
    assert all(row["samples"] > 0 for row in (*told["large"].values(), *told["small"].values()))


def test_a_run_with_a_checkpoint_is_measured_beside_one_without(tmp_path: Path) -> None:
    run(tmp_path, "checkpoint.py", "--parameters", 1_000_000, "--rounds", 1, "--steps", 2, "--folder", tmp_path)
    told = figures(tmp_path)
    assert told["bytes"] > 3 * 4 * 1_000_000
    assert [row["checkpoint_s"] > 0 for row in told["rows"].values()] == [False, True, True]
    assert all(taken > 0 for taken in told["disk"].values())


@pytest.mark.skipif(shutil.which("redis-server") is None, reason="redis-server is not installed")
def test_a_step_in_redis_is_measured_beside_its_parts(tmp_path: Path) -> None:
    run(tmp_path, "redis_step.py", "--parameters", 1000, "--steps", 2)
    told = figures(tmp_path)
    assert set(told["median_s"]) == {"in Redis", "in device memory", "writing the state"}
    assert told["apart_s"] == told["median_s"]["in device memory"] + told["median_s"]["writing the state"]
