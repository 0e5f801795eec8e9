"""Reads a Dockerfile and carries out, without Docker, the steps that do not want root of a machine of their own.

Each stage has a folder for what its WORKDIR would hold. While a step runs, the folder lies at one and the same path,
since environments cannot be moved. `apt-get`, `useradd` and their like are left out, and said to be.
"""

from __future__ import annotations

import json
import re
import shlex
import shutil
import subprocess
from collections import Counter
from dataclasses import dataclass, field
from fnmatch import translate
from pathlib import Path


@dataclass(frozen=True)
class Step:
    """One instruction: `RUN`, its `--options`, and what follows."""

    name: str
    options: dict[str, str]
    rest: str

    @property
    def words(self) -> list[str]:
        """The rest as a list: JSON as it is, else by the shell's rules."""
        words: list[str] = json.loads(self.rest) if self.rest.startswith("[") else shlex.split(self.rest)
        return words


@dataclass
class Stage:
    name: str
    base: str
    steps: list[Step] = field(default_factory=list)

    def all(self, name: str) -> list[Step]:
        return [step for step in self.steps if step.name == name]


def read(path: Path) -> dict[str, Stage]:
    """The stages by name, in order."""
    lines = [line for line in path.read_text().splitlines() if not line.lstrip().startswith("#")]
    stages: dict[str, Stage] = {}
    for line in "\n".join(lines).replace("\\\n", " ").splitlines():
        if not line.strip():
            continue
        name, _, rest = line.strip().partition(" ")
        options = {}
        while found := re.match(r"\s*--([a-z-]+)=(\S+)\s*", rest):
            options[found[1]] = f"{options.get(found[1], '')} {found[2]}".strip()
            rest = rest[found.end() :]
        step = Step(name, options, rest.strip())
        if name == "FROM":
            base, _, alias = step.rest.partition(" AS ")
            stages[alias] = Stage(alias, base)
        else:
            [*stages.values()][-1].steps.append(step)
    return stages


def lineage(stages: dict[str, Stage], name: str) -> list[Stage]:
    """The stage and those it is built on, the first first."""
    stage = stages[name]
    return [*(lineage(stages, stage.base) if stage.base in stages else []), stage]


def image(stages: dict[str, Stage], name: str) -> tuple[dict[str, str], dict[str, Step]]:
    """What a container of this stage gets: the variables, and the last of each other instruction."""
    steps = [step for stage in lineage(stages, name) for step in stage.steps]
    variables = dict(word.split("=", 1) for step in steps if step.name == "ENV" for word in step.words)
    return variables, {step.name: step for step in steps}


def sent(context: Path, files: list[str]) -> set[str]:
    """Those of the files that `.dockerignore` lets through: the last pattern on a path or a parent of it decides."""
    patterns = [line for line in (context / ".dockerignore").read_text().splitlines() if line and line[0] != "#"]
    through = set()
    for file in files:
        ignored = False
        parts = file.split("/")
        parents = ["/".join(parts[: end + 1]) for end in range(len(parts))]
        for pattern in patterns:
            if any(_matches(pattern.removeprefix("!"), parent) for parent in parents):
                ignored = not pattern.startswith("!")
        if not ignored:
            through.add(file)
    return through


def _matches(pattern: str, path: str) -> bool:
    """Go's filepath.Match, as far as we use it: `*` stays within a name, a leading `**/` is any folder."""
    if pattern.startswith("**/"):
        return bool(re.match(translate(pattern[3:]), path.rpartition("/")[2]))
    wanted, given = pattern.split("/"), path.split("/")
    return len(wanted) == len(given) and all(
        re.match(translate(glob), other) for glob, other in zip(wanted, given, strict=True)
    )


class Build:
    """Builds stages from a context into folders. One that only one other takes something of is used up by that.

    Args:
        context: what would be sent to Docker, before `.dockerignore`.
        files: its files, relative.
        folder: where the stages are kept; `folder/workdir` stands for the Dockerfile's WORKDIR.
        variables: the surroundings of each step.
    """

    def __init__(self, context: Path, files: list[str], folder: Path, variables: dict[str, str]) -> None:
        self.stages = read(context / "infra" / "docker" / "Dockerfile")
        self.workdir = folder / "workdir"
        self.left_out: list[str] = []
        self._context, self._files, self._folder, self._variables = context, sent(context, files), folder, variables
        self._built: dict[str, Path] = {}
        copies = (step for stage in self.stages.values() for step in stage.all("COPY"))
        bases = (stage.base for stage in self.stages.values())
        self._takers = Counter([*bases, *(step.options["from"] for step in copies if "from" in step.options)])

    def build(self, name: str) -> Path:
        """The folder of a finished stage."""
        if name in self._built:
            return self._built[name]
        stage, root = self.stages[name], self._folder / name
        if stage.base in self.stages:
            self._take(stage.base, self.build(stage.base), root)
        else:
            root.mkdir()
        for step in stage.steps:
            if step.name == "COPY" and "from" in step.options:
                self._copy_from(step, root)
            elif step.name == "COPY":
                self._copy(step, root)
            elif step.name == "RUN":
                self._run(step, root)
        self._built[name] = root
        return root

    def _copy_from(self, step: Step, root: Path) -> None:
        source, target = step.words
        workdir = image(self.stages, step.options["from"])[1]["WORKDIR"].rest
        made = self.build(step.options["from"])
        self._take(step.options["from"], made / Path(source).relative_to(workdir), root / target)

    def _take(self, stage: str, source: Path, target: Path) -> None:
        """Moves what nobody else wants: an environment has thousands of files. Else a copy that shares the contents."""
        assert source.exists(), f"COPY --from: {source} was not made"
        if self._takers[stage] == 1:
            source.rename(target)
        else:
            subprocess.run(["cp", "-al", str(source), str(target)], check=True)

    def _copy(self, step: Step, root: Path) -> None:
        *sources, target = step.words
        for source in sources:
            if source in self._files:
                pairs = [(source, root / target / Path(source).name)]
            else:
                inside = [file for file in self._files if file.startswith(f"{source}/")]
                pairs = [(file, root / target / file.removeprefix(f"{source}/")) for file in inside]
            assert pairs, f"COPY {source}: there is nothing of that name, or .dockerignore leaves it out"
            for file, place in pairs:
                place.parent.mkdir(parents=True, exist_ok=True)
                shutil.copy2(self._context / file, place)

    def _run(self, step: Step, root: Path) -> None:
        if not step.rest.startswith(("make ", ".venv/")):
            self.left_out.append(step.rest)
            return
        root.rename(self.workdir)
        try:
            done = subprocess.run(
                step.rest,
                shell=True,
                cwd=self.workdir,
                env=self._variables,
                capture_output=True,
                text=True,
                check=False,
            )
            assert done.returncode == 0, f"RUN {step.rest}\n{(done.stdout + done.stderr)[-4000:]}"
        finally:
            self.workdir.rename(root)
