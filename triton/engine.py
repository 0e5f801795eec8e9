"""`make engine`: builds TensorRT plans for this host's GPU from the models that `make models` installed.

    engine.py source    on the host: prepares each ONNX for TensorRT, and stores its output for one image
    engine.py build     in the Triton container: builds plans, compares their output with it, stores them; then `select`
    engine.py select    in the Triton container: puts this GPU's plans into the repository, or the ONNX if there is none
    engine.py serve     the container's command: `select`, then tritonserver with the arguments after `--`

`build`, `select` and `serve` need only Python's standard library, nvidia-smi and trtexec.
"""

from __future__ import annotations

import argparse
import os
import shutil
import sys
from pathlib import Path

from engine_build import build
from engine_device import Device, Stop, here
from engine_files import choose, has_sources, plan_path, sources
from engine_swap import install, install_ensemble, served

TRITON = Path(__file__).resolve().parent


def main() -> int:
    options = _options()
    try:
        if options.command == "source":
            from engine_source import collect  # needs onnx, which only the host has

            for line in collect(options.models, options.engines, options.picture, options.onnx_python):
                print(line)
            return 0
        own = options.command == "serve" and not has_sources(options.engines) and served(options.repository)
        if own:
            print(f"no model in {options.engines}; {options.repository} is served unchanged: {', '.join(own)}")
        else:
            device = here()
            if options.command == "build":
                build_all(options.engines, device, force=options.force)
            select_all(options.engines, device, options.repository)
        if options.command == "serve":
            serve(options.repository, options.arguments)
    except (Stop, OSError) as error:
        print(error, file=sys.stderr)
        return 1
    return 0


def build_all(engines: Path, device: Device, *, force: bool) -> None:
    """Builds a plan for each model that has no valid one for this device yet; `force`: for every model."""
    for source in sources(engines):
        plan = plan_path(engines, device, source)
        if not force and choose(engines, device, source).kind == "plan":
            print(f"{source.name}: {plan.name} exists already (FORCE=1 builds it anew)")
            continue
        print(f"{source.name}: building for {device.slug}; this takes some minutes", flush=True)
        build(engines, device, source)
        print(f"{source.name}: {plan}, checked against its ONNX")


def select_all(engines: Path, device: Device, repository: Path) -> None:
    """Installs the plan or ONNX for this device in the repository; Triton loads it at its next start."""
    for source in sources(engines):
        choice = choose(engines, device, source)
        print(f"{source.name}: serves {choice.kind} {install(choice, repository)} ({choice.reason})", flush=True)
    ensemble = engines / "source" / "vision.pbtxt"
    install_ensemble(ensemble.read_text() if ensemble.exists() else None, repository / "vision")


def serve(repository: Path, arguments: list[str]) -> None:
    """Replaces this process by tritonserver, so that signals and the exit status are the server's.

    Raises:
        Stop: tritonserver is not in the PATH.
    """
    server = shutil.which("tritonserver")
    if server is None:
        raise Stop("tritonserver is not in the PATH: run `serve` in the Triton container")
    command = [
        server,
        f"--model-repository={repository}",
        "--model-config-name=installed",
        "--disable-auto-complete-config",
        "--model-control-mode=explicit",
        *(f"--load-model={name}" for name in served(repository)),
        *arguments,
    ]
    sys.stdout.flush()
    os.execv(server, command)


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("command", choices=("source", "build", "select", "serve"))
    parser.add_argument(
        "--models", type=Path, default=TRITON / "cpu_repository", help="where `make models` installed them"
    )
    parser.add_argument("--engines", type=Path, default=TRITON / "engines", help="where plans are stored")
    parser.add_argument(
        "--repository", type=Path, default=TRITON / "model_repository", help="the repository that Triton serves"
    )
    parser.add_argument("--picture", type=Path, help="source: a JPEG on which the models detect something")
    parser.add_argument(
        "--onnx-python",
        type=Path,
        default=TRITON.parent / ".venv-triton" / "bin" / "python",
        help="source: an interpreter with ONNX Runtime",
    )
    parser.add_argument("--force", action="store_true", help="build: also plans that exist already")
    given = sys.argv[1:]
    end = given.index("--") if "--" in given else len(given)
    options = parser.parse_args(given[:end])
    options.arguments = given[end + 1 :]
    return options


if __name__ == "__main__":
    sys.exit(main())
