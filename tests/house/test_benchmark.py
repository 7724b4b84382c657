"""The bus's benchmark runs, in its quickest form."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]


@pytest.mark.rabbitmq
def test_the_quick_benchmark_of_the_pipe_ends_with_its_figures_as_json() -> None:
    # given
    paths = os.pathsep.join(str(ROOT / part) for part in ("services", "clients", "."))
    command = [sys.executable, "-m", "tests.benchmarks.bench_bus", "--quick", "--only", "pipe", "--sizes", "150000"]
    # when
    ended = subprocess.run(
        command,
        cwd=ROOT,
        env=os.environ | {"PYTHONPATH": paths},
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    # then
    assert ended.returncode == 0, ended.stderr
    pipe = json.loads(ended.stdout.splitlines()[-1])["pipe"]["150000"]
    assert {"ours", "claim", "pika", "pika-reads", "aio-pika", "ours_to"} == set(pipe)
    assert all(pipe[form]["cpu_s_per_gb"]["broker"] > 0 for form in ("ours", "claim", "pika", "pika-reads", "aio-pika"))
    assert set(pipe["ours_to"]) == {"claim", "pika", "pika-reads", "aio-pika"}
