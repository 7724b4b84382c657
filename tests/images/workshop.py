"""Where images are made and run: buildah and podman with storage of their own, which ends with its folder.

    debootstrap ─> base image
    pip download ─> wheels ─┐
    the working tree ───────┴─> buildah ─> image ─> podman ─> container

Works as root on a machine without a container service, in a container itself, and without a registry of images: the
build has no isolation but a chroot, layers are copies, and a container shares the machine's network.
"""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import tempfile
from collections.abc import Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[2]
PROGRAMS = ("podman", "buildah", "runc", "debootstrap")
SUITE, MIRROR = "bookworm", "http://deb.debian.org/debian"
"""Debian's release with the Python that the default base has too, 3.11."""
BASE_PACKAGES = "python3,python3-venv"
NOT_IN_THE_BASE = (
    *("./dev/*", "./proc/*", "./sys/*", "./var/cache/apt/*", "./var/lib/apt/lists/*"),
    *("./usr/share/doc/*", "./usr/share/locale/*", "./usr/share/man/*"),  # as "slim" images leave them out
)
LIBRARIES = "opt/inspectbus/lib/python3.11/site-packages"
"""In an image."""
NEEDED_BYTES = 16 * 1024**3
"""Of disk for one service with torch: its layers lie there several times while they are made."""
BUILD_LIMIT_S = 3600.0
COMMAND_LIMIT_S = 900.0
"""A start copies the whole image."""


def missing() -> list[str]:
    """What this machine lacks, in words; empty when images can be made here."""
    lacks = [f"{name} is not installed: apt-get install {name}" for name in PROGRAMS if shutil.which(name) is None]
    if os.geteuid() != 0:
        lacks.append("this needs root, for debootstrap and for containers without a container service")
    free = shutil.disk_usage(tempfile.gettempdir()).free
    if free < NEEDED_BYTES:
        lacks.append(
            f"{tempfile.gettempdir()} has {free / 1024**3:.0f} GiB free and {NEEDED_BYTES / 1024**3:.0f} are needed: "
            "point TMPDIR elsewhere"
        )
    return lacks


class Workshop:
    """Images and containers, by id. Made by `workshop()`."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        own = ["--root", str(folder / "images"), "--runroot", str(folder / "run"), "--storage-driver", "vfs"]
        self._podman = ["podman", *own, "--cgroup-manager", "cgroupfs", "--events-backend", "none"]
        self._buildah = ["buildah", *own]
        # Builders and importers keep what they work on there.
        scratch = folder / "scratch"
        scratch.mkdir()
        self._environment = {**os.environ, "TMPDIR": str(scratch)}
        self._containers: list[str] = []

    def base(self) -> str:
        """A Debian with Python and nothing else, from the distribution's mirror."""
        system = self._folder / "system"
        made = ["debootstrap", "--variant=minbase", f"--include={BASE_PACKAGES}", SUITE, str(system), MIRROR]
        # What it mounts there ends with it, even when it is killed: never is our /proc in a folder that is removed.
        self._run(["unshare", "--mount", "--fork", "--kill-child", *made], BUILD_LIMIT_S)
        archive = self._folder / "system.tar"
        left_out = [f"--exclude={pattern}" for pattern in NOT_IN_THE_BASE]
        self._run(["tar", "-C", str(system), *left_out, "-cf", str(archive), "."])
        shutil.rmtree(system)
        name = "localhost/base:latest"
        self._run([*self._podman, "import", "--quiet", str(archive), name])
        archive.unlink()
        return name

    def wheels(self, extras: str) -> Path:
        """All that the image installs, fetched by this machine's pip, which knows the way to its index."""
        folder = self._folder / "wheels"
        command = [sys.executable, "-m", "pip", "download", "--quiet", "--only-binary=:all:", "--python-version=3.11"]
        wanted = [f"{ROOT}[{extras}]", "setuptools>=77", "wheel"]
        self._run([*command, "-c", str(ROOT / "constraints.txt"), "-d", str(folder), *wanted], BUILD_LIMIT_S)
        return folder

    def build(self, base: str, wheels: Path, arguments: Mapping[str, str]) -> str:
        """The image of these build arguments; gives its id."""
        offline = self._folder / "pip.conf"
        offline.write_text("[global]\nno-index = true\nfind-links = /wheels\n")
        told = [f"--build-arg={name}={value}" for name, value in {"BASE": base, **arguments}.items()]
        made = self._folder / "image-id"
        self._run(
            [
                *self._buildah,
                "bud",
                "--isolation=chroot",
                f"--file={ROOT / 'deploy' / 'Dockerfile'}",
                f"--secret=id=pip,src={offline}",
                f"--volume={wheels}:/wheels:ro",
                f"--iidfile={made}",
                *told,
                str(ROOT),
            ],
            BUILD_LIMIT_S,
        )
        return made.read_text().strip().removeprefix("sha256:")

    def size_bytes(self, image: str) -> int:
        return int(self._looked_at("image", image)["Size"])

    def config(self, image: str) -> dict[str, object]:
        """What the image says of itself: user, labels, entry point..."""
        return dict(self._looked_at("image", image)["Config"])

    def files(self, image: str, names: Collection[str]) -> list[str]:
        """Paths in the image, everywhere, of files with one of these names."""
        with self._opened(image) as top:
            return sorted(
                str(Path("/", Path(folder).relative_to(top), file))
                for folder, _, files in os.walk(top)
                for file in files
                if file in names
            )

    def libraries(self, image: str) -> dict[str, int]:
        """Bytes of all that lies beside our own code, by the name that Python or a wheel gives it."""
        with self._opened(image) as top:
            return {entry.name: _size_bytes(entry) for entry in (top / LIBRARIES).iterdir()}

    def start(self, image: str, environment: Mapping[str, str], mounts: Sequence[str] = ()) -> str:
        """The image with its own entry point, as strict as a cluster would run it; gives the container's id."""
        told = [f"--env={name}={value}" for name, value in environment.items()]
        volumes = [f"--volume={mount}" for mount in mounts]
        container = self._run([*self._run_as_nobody(), "--detach", *told, *volumes, image]).strip()
        self._containers.append(container)
        return container

    def once(
        self, image: str, entry_point: Sequence[str], command: Sequence[str], environment: Mapping[str, str]
    ) -> str:
        """What a program of the image says that ends by itself, run as strictly as the service."""
        told = [f"--env={name}={value}" for name, value in environment.items()]
        entered = f"--entrypoint={json.dumps(list(entry_point))}"
        return self._run([*self._run_as_nobody(), "--rm", entered, *told, image, *command])

    def inside(self, container: str, *command: str) -> str:
        """What a command says that is run beside the service. Raises AssertionError unless it ends with 0."""
        return self._run([*self._podman, "exec", container, *command])

    def terminate(self, container: str) -> None:
        """SIGTERM, and no more."""
        self._run([*self._podman, "kill", "--signal=TERM", container])

    def await_exit(self, container: str, limit_s: float) -> int:
        """Its exit code. Raises AssertionError when it has not ended by then."""
        return int(self._run([*self._podman, "wait", container], limit_s))

    def log(self, container: str) -> str:
        ended = subprocess.run(
            [*self._podman, "logs", "--tail=40", container],
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            timeout=COMMAND_LIMIT_S,
            check=False,
        )
        return ended.stdout

    def drop(self, image: str) -> None:
        """The image and the containers made of it, to make room for the next."""
        self.drop_containers()
        self._run([*self._podman, "rmi", "--force", image])
        # What a build keeps of its stages has no name.
        self._run([*self._podman, "image", "prune", "--force"])

    def drop_containers(self) -> None:
        """Ends those that run, and removes all that were started here, with their volumes."""
        while self._containers:
            self._run([*self._podman, "rm", "--force", "--volumes", "--time=0", self._containers.pop()])

    def _run_as_nobody(self) -> list[str]:
        return [
            *self._podman,
            "run",
            "--runtime=runc",
            "--network=host",
            "--ulimit=nofile=1024:1024",
            "--ulimit=nproc=4096:4096",
            "--read-only",
            "--user=1000",
            "--cap-drop=ALL",
            "--security-opt=no-new-privileges",
            "--log-driver=k8s-file",
        ]

    @contextmanager
    def _opened(self, image: str) -> Iterator[Path]:
        """The image's files, to be read only."""
        try:
            yield Path(self._run([*self._podman, "image", "mount", image]).strip())
        finally:
            self._run([*self._podman, "image", "unmount", image])

    def _run(self, command: Sequence[str], limit_s: float = COMMAND_LIMIT_S) -> str:
        """Standard output. Raises AssertionError, with the end of what it said, when it fails or takes too long."""
        with subprocess.Popen(
            command,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            env=self._environment,
            start_new_session=True,
        ) as process:
            try:
                out, errors = process.communicate(timeout=limit_s)
            except BaseException as error:  # whatever ends us: a build has children of its own, which would go on
                os.killpg(process.pid, signal.SIGKILL)
                if isinstance(error, subprocess.TimeoutExpired):
                    raise AssertionError(f"{command[0]} took more than {limit_s:.0f} s: {' '.join(command)}") from None
                raise
        if process.returncode != 0:
            said = "\n".join((out + errors).splitlines()[-30:])
            raise AssertionError(f"{' '.join(command)} ended with {process.returncode}:\n{said}")
        return out

    def _looked_at(self, kind: str, name: str) -> Any:
        (found,) = json.loads(self._run([*self._podman, kind, "inspect", name]))
        return found


@contextmanager
def workshop() -> Iterator[Workshop]:
    """Leaves nothing behind: no container, no image, no file."""
    with tempfile.TemporaryDirectory(prefix="inspectbus-images-") as folder:
        made = Workshop(Path(folder))
        try:
            yield made
        finally:
            made.drop_containers()


def _size_bytes(entry: Path) -> int:
    return sum(file.lstat().st_size for file in (entry, *entry.rglob("*")) if not file.is_dir())
