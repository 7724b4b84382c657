"""The benchmarks run, in their quickest forms."""

from __future__ import annotations

import importlib.util
import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).parents[2]


def benchmark(name: str, *arguments: str) -> dict[str, Any]:
    """The figures that its last line says."""
    paths = os.pathsep.join(str(ROOT / part) for part in ("services", "clients", "."))
    ended = subprocess.run(
        [sys.executable, "-m", f"tests.benchmarks.{name}", *arguments],
        cwd=ROOT,
        env=os.environ | {"PYTHONPATH": paths},
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert ended.returncode == 0, ended.stderr
    told: dict[str, Any] = json.loads(ended.stdout.splitlines()[-1])
    return told


@pytest.mark.rabbitmq
def test_the_quick_benchmark_of_the_pipe_ends_with_its_figures_as_json() -> None:
    # when
    told = benchmark("bench_bus", "--quick", "--only", "pipe", "--sizes", "150000")
    # then
    pipe = told["pipe"]["150000"]
    assert {"ours", "claim", "pika", "pika-reads", "aio-pika", "ours_to"} == set(pipe)
    assert all(pipe[form]["cpu_s_per_gb"]["broker"] > 0 for form in ("ours", "claim", "pika", "pika-reads", "aio-pika"))
    assert set(pipe["ours_to"]) == {"claim", "pika", "pika-reads", "aio-pika"}


def test_the_quick_benchmark_of_training_ends_with_the_ratio_of_both_depths_as_json() -> None:
    told = benchmark("bench_training", "--quick")

    assert set(told) == {"upper", "whole"}
    for figures in told.values():
        assert figures["epoch_s"] > 0
        assert figures["ratio"] == pytest.approx(figures["epoch_s"] / figures["bare_s"], rel=0.05)
        assert 0 < figures["learning_ratio"] <= figures["ratio"]


def test_the_quick_benchmark_of_inference_ends_with_its_figures_as_json() -> None:
    told = benchmark(
        "bench_inference", "--quick", "--engine", "onnxruntime", "--backbone", "test_efficientnet", "--side", "64"
    )

    assert set(told["service_over_raw"]) == {"8", "32", "64"}
    assert all(ratio > 0 for ratio in told["service_over_raw"].values())
    figures = told["figures"]
    one = figures["callers"]["1"]
    assert told["single_p50_over_raw"] == pytest.approx(one["p50_ms"] / figures["raw_single_ms"], rel=0.05)
    assert 0 < one["p50_ms"] <= one["p99_ms"]
    if importlib.util.find_spec("mosec") is None:
        assert told["over_mosec"] is None
    else:
        assert {of: set(ratios) for of, ratios in told["over_mosec"].items()} == {
            "throughput": {"8", "32", "64"},
            "p50": {"1", "8"},
            "p99": {"1", "8", "32", "64"},
        }
        theirs = figures["mosec"]["callers"]["8"]
        for key, ours in (("over_mosec", "frames"), ("by_grpc_over_mosec", "callers")):
            ratio = theirs["p99_ms"] / figures[ours]["8"]["p99_ms"]
            assert told[key]["p99"]["8"] == pytest.approx(ratio, rel=0.05)
    overload = figures["overload"]
    assert overload["offered_per_s"] >= overload["goodput_per_s"]
    assert told["overload_goodput"] >= 0


def test_the_quick_benchmark_of_swaps_fails_no_call_and_finds_every_version_where_it_was_live() -> None:
    told = benchmark(
        "bench_swaps", "--quick", "--engine", "onnxruntime", "--backbone", "test_efficientnet", "--side", "64"
    )

    assert (told["swaps"], told["failed"], told["misnamed"]) == (4, 0, 0)
    assert told["calls"] > 0
    before, during = told["before"], told["during"]
    assert told["p99_over_before"] == pytest.approx(during["p99_ms"] / before["p99_ms"], rel=0.05)
    assert 0 < told["swap_s"]["median"] <= told["swap_s"]["longest"]


@pytest.mark.rabbitmq
def test_the_quick_benchmark_of_scaling_goes_to_two_workers_and_back_and_loses_no_frame() -> None:
    told = benchmark("bench_scaling", "--quick")

    assert [step["workers"] for step in told["steps"]] == [1, 2]
    # Of three seconds beside other tests: it does bring something, or we know why not.
    assert told["steps"][1]["of_linear"] > 0.7 or told["steps"][1]["limit"] in ("broker", "cores"), told["steps"]
    assert told["scaled_down"]["exits"] == [0]
    assert told["scaled_down"]["lost"] == 0
