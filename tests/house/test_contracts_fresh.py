"""The contracts are well formed, and what is generated from them is what stands in the tree."""

from __future__ import annotations

import os
import re
import subprocess
import sys
import tomllib
from pathlib import Path

from tests.doubles.servers import tool

ROOT = Path(__file__).parents[2]
PROTOS = ROOT / "protos"
GENERATED = ROOT / "services" / "inspectbus" / "api"


def test_generated_code_is_what_the_contracts_say(tmp_path: Path) -> None:
    contracts = sorted(str(path) for path in PROTOS.rglob("*.proto"))
    services = [path for path in contracts if "\nservice " in Path(path).read_text()]

    generate(tmp_path, "python", "mypy", contracts)
    generate(tmp_path, "grpc_python", "mypy_grpc", services)

    fresh, checked_in = (
        {str(path.relative_to(api)): path.read_text() for path in api.rglob("*_pb2*.py*") if path.suffix != ".pyc"}
        for api in (tmp_path / "inspectbus" / "api", GENERATED)
    )
    assert fresh
    assert sorted(fresh) == sorted(checked_in), "run `make protos`"
    stale = [name for name, text in fresh.items() if text != checked_in[name]]
    assert stale == [], "run `make protos`, with the generators' versions of constraints.txt"


def generate(folder: Path, code: str, stubs: str, contracts: list[str]) -> None:
    # The plug-ins for type stubs are programs beside the interpreter.
    environment = {**os.environ, "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}"}
    command = [sys.executable, "-m", "grpc_tools.protoc", f"-I{PROTOS}", f"--{code}_out={folder}"]
    done = subprocess.run(
        [*command, f"--{stubs}_out=quiet:{folder}", *contracts],
        env=environment,
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert done.returncode == 0, done.stderr


def test_dependencies_reach_back_no_further_than_generated_code_does() -> None:
    """It refuses to be imported beside a library older than its generator."""
    declared = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["dependencies"]
    floors = {name: floor for entry in declared for name, floor in re.findall(r"^([a-z]+)>=([\d.]+)", entry)}
    protobuf = re.findall(r"Protobuf Python Version: ([\d.]+)", (GENERATED / "v1" / "frame_pb2.py").read_text())
    grpcio = re.findall(r"GRPC_GENERATED_VERSION = '([\d.]+)'", (GENERATED / "v1" / "results_pb2_grpc.py").read_text())

    assert [floors["protobuf"], floors["grpcio"]] == [*protobuf, *grpcio]


def test_contracts_pass_the_linter() -> None:
    done = subprocess.run([tool("buf"), "lint"], cwd=PROTOS, capture_output=True, text=True, timeout=120, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
