"""The Dockerfile: its build context, its pins, and its steps, which run in a clean folder without Docker."""

from __future__ import annotations

import os
import re
import shutil
import signal
import subprocess
import sysconfig
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import httpx
import psutil
import pytest

from app.settings import ROOT
from tests.infra import dockerfile
from tests.infra.dockerfile import Build
from tests.support import clip
from tests.support.nginx import free_ports
from tests.support.service import Service, wait_until

STAGES = dockerfile.read(ROOT / "infra" / "docker" / "Dockerfile")
SYSTEM_LIBRARIES = {
    *("ld-linux-x86-64", "libc", "libdl", "libm", "libmvec", "libpthread", "libresolv", "librt", "libutil"),
    *("libgcc_s", "libstdc++", "libz"),
    *("libbz2", "libcrypto", "libexpat", "libffi", "liblzma", "libmpdec", "libsqlite3", "libssl", "libuuid"),
    "libfribidi",
}
"""What Debian's slim image holds – glibc, GCC's runtime, zlib – and what the Python image adds for its own modules.
The last is not in there: Pillow loads it where it is, for text from right to left, and does without."""


def tracked() -> list[str]:
    """Files of the repository, also those not committed yet; without what git ignores."""
    listing = ["git", "ls-files", "--cached", "--others", "--exclude-standard", "-z"]
    names = subprocess.run(listing, cwd=ROOT, capture_output=True, text=True, check=True).stdout.split("\0")
    return sorted(name for name in names if name and (ROOT / name).is_file())


def test_images_are_pinned_and_run_as_an_ordinary_user() -> None:
    outside = {stage.base for stage in STAGES.values()} - STAGES.keys()
    assert all(re.fullmatch(r"python:3\.12\.\d+-slim-bookworm", base) for base in outside)
    for name in ("backend", "backend-cpu"):
        variables, last = dockerfile.image(STAGES, name)
        assert last["USER"].rest == "1000:1000"
        assert variables["HOST"] == "0.0.0.0"  # so that AUTH_TOKENS is asked for
        assert variables["HOME"] == variables["STATE_DIR"]
    assert [*STAGES][-1] == "backend-cpu"  # what `docker build` makes without --target needs nothing else


def test_every_step_but_the_systems_own_is_the_makefiles() -> None:
    makefile = (ROOT / "Makefile").read_text()
    makes = []
    for step in (step for stage in STAGES.values() for step in stage.all("RUN")):
        first = step.rest.split()[0]
        assert first in ("make", "apt-get", "groupadd", ".venv/bin/python"), step.rest
        assert "pip install" not in step.rest
        if first == "make":
            makes.append(step.rest.removeprefix("make "))
    assert all(re.search(rf"^{re.escape(target)}:", makefile, re.M) for target in makes)
    prerequisites = re.search(r"^install: (.*?) ##", makefile, re.M)
    assert prerequisites is not None
    ready = {"triton-env": ".venv-triton/.ready", "ocr-env": ".venv-ocr/.ready"}
    assert {ready.get(target, target) for target in makes} == {*prerequisites[1].split(), ".venv/.bootstrap"}


def test_what_is_sent_to_docker_is_what_is_needed() -> None:
    more = [
        ".env",
        ".venv/bin/python",
        ".venv-ocr/pyvenv.cfg",
        ".state/x",
        ".git/config",
        "app/live/__pycache__/x.pyc",
        "triton/cpu_repository/yolo/2/model.onnx",
        "triton/cpu_repository/yolo/12/model.onnx",
        "triton/cpu_repository/yolo/configs/installed.pbtxt",
        "triton/model_repository/yolo/1/model.plan",
        "node_modules/x/y.js",
    ]
    through = dockerfile.sent(ROOT, [*tracked(), *more])
    assert not through & set(more)
    assert {name.split("/")[0] for name in through} == {
        "LICENSE", "Makefile", "README.md", "pyproject.toml", "app", "infra", "requirements", "triton",
    }  # fmt: skip
    assert "triton/cpu_repository/_mediapipe/1/model.py" in through
    assert "app/web/index.html" in through


@contextmanager
def container(build: Build, root: Path, state: Path, port: int, log: Path) -> Iterator[Service]:
    """What `docker run` of the image would start: its ENTRYPOINT and CMD with its variables, and no others."""
    variables, last = dockerfile.image(build.stages, "backend-cpu")
    workdir = last["WORKDIR"].rest
    state.mkdir()
    variables |= {"PATH": os.defpath, "HOME": str(state), "STATE_DIR": str(state), "TMPDIR": str(state.parent)}
    variables |= {"HOST": "127.0.0.1", "PORT": str(port)}
    command = [word.replace(workdir, str(build.workdir)) for word in last["ENTRYPOINT"].words + last["CMD"].words]
    root.rename(build.workdir)
    with log.open("wb") as out:
        process = subprocess.Popen(command, cwd=build.workdir, env=variables, stdout=out, stderr=subprocess.STDOUT)
    try:
        yield Service(port, process, log)
    finally:
        process.send_signal(signal.SIGTERM)
        try:
            process.wait(30)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()


def healthy(build: Build, port: int) -> bool:
    """The image's HEALTHCHECK."""
    _, last = dockerfile.image(build.stages, "backend-cpu")
    check = dockerfile.Step("CMD", {}, last["HEALTHCHECK"].rest.removeprefix("CMD "))
    words = [word.replace(last["WORKDIR"].rest, str(build.workdir)) for word in check.words]
    done = subprocess.run(words, env={"PORT": str(port)}, capture_output=True, text=True, timeout=20, check=False)
    assert "Traceback" not in done.stderr, done.stderr
    assert done.returncode == 0 or f"127.0.0.1:{port}" in done.stdout
    return done.returncode == 0


@pytest.fixture
def folder() -> Iterator[Path]:
    """A folder that is deleted afterwards, because pytest would keep a gigabyte (three environments)."""
    with tempfile.TemporaryDirectory(prefix="sightline-image-") as name:
        yield Path(name)


def system_libraries(service: Service, workdir: Path) -> set[str]:
    """Names of the libraries that the service and all it started have loaded of the system's, not of the image's."""
    main = psutil.Process(service.process.pid)
    found = set()
    for process in (main, *main.children(recursive=True)):
        loaded = {Path(part.path) for part in process.memory_maps() if ".so" in part.path}
        found_in = (workdir, Path(sysconfig.get_path("stdlib")))
        rest = (path.name.split(".so")[0] for path in loaded if not any(map(path.is_relative_to, found_in)))
        names = {name for name in rest if not name.startswith("libpython3")}
        # MediaPipe loads Mesa's driver where there is one, and answers the same without.
        if "libEGL_mesa" not in names:
            found |= names
    return found


def files_of(folder: Path) -> set[str]:
    return {str(path.relative_to(folder)) for path in folder.rglob("*")}


@pytest.mark.timeout(600)
def test_the_steps_make_a_service_that_is_whole_and_writes_nothing_beside_its_state(folder: Path) -> None:
    context = folder / "context"
    files = tracked()
    for name in files:
        (context / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy2(ROOT / name, context / name)
    # Without the Dockerfile's UV_COMPILE_BYTECODE: it takes a minute and changes nothing that is looked at here.
    surroundings = {key: value for key, value in os.environ.items() if key not in ("VIRTUAL_ENV", "MAKEFLAGS")}
    build = Build(context, files, folder, surroundings)
    root = build.build("backend-cpu")
    assert sorted(line.split()[0] for line in build.left_out) == ["apt-get", "groupadd"]
    shutil.rmtree(context)  # nothing may lean on it
    held = files_of(root)
    assert not [name for name in held if name.endswith(("/bin/uv", "/bin/pip")) and name.startswith(".venv/")]
    (port,) = free_ports(1)
    with container(build, root, folder / "state", port, folder / "log") as service:
        wait_until(service, "/health/ready")
        assert healthy(build, port)
        answer = httpx.post(f"{service.url}/v1/frames", content=clip.Pan().jpegs()[0], timeout=60).json()
        assert sorted(detection["class_name"] for detection in answer["objects"]) == ["face", "person"]
        assert [text["text"] for text in answer["texts"]] == [clip.WORDS]
        assert httpx.get(f"{service.url}/").status_code == 200
        libraries = system_libraries(service, build.workdir)  # OCR and Triton have run
        assert {"libc", "libstdc++"} <= libraries <= SYSTEM_LIBRARIES  # no other is installed
    assert not healthy(build, port)
    assert "Traceback" not in service.log
    # The root file system is read-only in the end.
    assert {name for name in files_of(build.workdir) - held if "__pycache__" not in name} == set()
