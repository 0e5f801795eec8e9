"""The README's reference tables, made from the code. `make docs` writes them; a test holds the README to them."""

from __future__ import annotations

import ast
import dataclasses
import inspect
import re
import sys
import types
import typing
from pathlib import Path
from typing import Any

from prometheus_client.metrics import MetricWrapperBase
from pydantic import BaseModel, SecretStr
from pydantic_core import PydanticUndefined

from app import metrics
from app.pipeline.registry import BUILT_IN
from app.protocol import messages, result
from app.protocol.stages import PARTS
from app.settings import ROOT, SECRETS, SECTIONS, VARIABLES

_BLOCK = re.compile(r"(<!-- table: (\w+) -->\n).*?(<!-- end -->)", re.S)


def fill(text: str) -> str:
    """The text with every marked table made anew."""
    return _BLOCK.sub(lambda found: f"{found[1]}{TABLES[found[2]]()}\n{found[3]}", text)


def settings() -> str:
    out = []
    for section in SECTIONS:
        rows = [
            (_variable(name.upper()), f"`{_default(field.default)}`", field.description or "")
            for name, field in section.model_fields.items()
            if name.upper() in VARIABLES
        ]
        title = section.__name__.removesuffix("Settings")
        out.append(f"**{title}**\n\n" + _table(("variable", "default", "what it does"), rows))
    return "\n\n".join(out)


def _variable(name: str) -> str:
    return f"`{name}`, `{name}_FILE`" if name in SECRETS else f"`{name}`"


def _default(value: Any) -> str:
    if value is None or value is PydanticUndefined or value == ():
        return "unset"
    if isinstance(value, Path):
        return str(value.relative_to(ROOT)) if value.is_relative_to(ROOT) else str(value)
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, tuple):
        return ",".join(map(str, value))
    if isinstance(value, SecretStr):
        return value.get_secret_value() or "unset"  # of a default: there is nothing secret in it
    return f"{value:g}" if isinstance(value, float) else str(value)


def metric_objects() -> list[MetricWrapperBase]:
    return [value for value in vars(metrics).values() if isinstance(value, MetricWrapperBase)]


def metric_table() -> str:
    rows = []
    for metric in metric_objects():
        name = metric._name + ("_total" if metric._type == "counter" else "")
        labels = ", ".join(f"`{label}`" for label in metric._labelnames) or "–"
        rows.append((f"`{name}`", metric._type, labels, metric._documentation))
    return _table(("metric", "type", "labels", "what it says"), rows)


def client_messages() -> str:
    rows = []
    for model in messages.CLIENT_MESSAGES:
        fields = [
            f"`{name}`: {_type(field.annotation)}" + (f" – {field.description}" if field.description else "")
            for name, field in model.model_fields.items()
            if name != "type"
        ]
        rows.append((f"`{_name(model)}`", _first_line(model), "<br>".join(fields) or "–"))
    return _table(("message", "meaning", "fields"), rows)


def server_messages() -> str:
    rows = []
    for model in messages.SERVER_MESSAGES:
        notes = _attribute_docs(model)
        fields = []
        for field in dataclasses.fields(model):
            if field.name == "type":
                continue
            if model is messages.Result and field.name == "frame":
                fields += [f"`{name}`" for name in ("image", *PARTS, "stages", "timings_ms")]
                continue
            note = notes.get(field.name)
            fields.append(f"`{field.name}`" + (f" – {note}" if note else ""))
        rows.append((f"`{_name(model)}`", _first_line(model), "<br>".join(fields)))
    return _table(("message", "meaning", "fields"), rows)


def result_fields() -> str:
    rows = []
    for model in (result.Image, *_models_of_parts(), result.Stage):
        hints, notes = typing.get_type_hints(model), _attribute_docs(model)
        fields = [
            f"`{field.name}`: {_type(hints[field.name])}" + (f" – {notes[field.name]}" if field.name in notes else "")
            for field in dataclasses.fields(model)
        ]
        rows.append((model.__name__, "<br>".join(fields)))
    return _table(("part", "fields"), rows)


def _models_of_parts() -> list[type[Any]]:
    """The dataclasses in the parts of a result, each after the one that holds it."""
    found: list[type[Any]] = []

    def add(annotation: Any) -> None:
        if dataclasses.is_dataclass(annotation) and isinstance(annotation, type) and annotation is not result.Box:
            if annotation in found:
                return
            found.append(annotation)
            for held in typing.get_type_hints(annotation).values():
                add(held)
        for argument in typing.get_args(annotation):
            add(argument)

    for part in PARTS.values():
        add(part.type)
    return found


def stages() -> str:
    rows = [
        (
            f"`{stage.name}`",
            stage.description,
            f"`{stage.part.field}`" if stage.part is not None else "–",
            "yes" if stage.live else "–",
            "yes" if stage.fleet else "–",
        )
        for stage in BUILT_IN
    ]
    return _table(
        ("stage", "what it adds", "field of a result", "live clients", "cameras, unless FLEET_STAGES says"), rows
    )


def _name(model: type[Any]) -> str:
    if issubclass(model, BaseModel):
        return str(typing.get_args(model.model_fields["type"].annotation)[0])
    return str(model.__dataclass_fields__["type"].default)


def _first_line(model: type[Any]) -> str:
    text = inspect.getdoc(model) or ""
    return "" if text.startswith(f"{model.__name__}(") else " ".join(text.split("\n\n")[0].split())


def _attribute_docs(model: type[Any]) -> dict[str, str]:
    """The strings beneath a class's fields."""
    (tree,) = ast.parse(inspect.cleandoc("\n" + inspect.getsource(model))).body
    assert isinstance(tree, ast.ClassDef)
    notes = {}
    for field, note in zip(tree.body, tree.body[1:], strict=False):
        match field, note:
            case ast.AnnAssign(target=ast.Name(id=name)), ast.Expr(value=ast.Constant(value=str(text))):
                notes[name] = " ".join(text.split())
    return notes


def _type(annotation: Any) -> str:
    if annotation is type(None):
        return "null"
    origin, arguments = typing.get_origin(annotation), typing.get_args(annotation)
    if origin is typing.Annotated:
        return _type(arguments[0])
    if origin in (typing.Union, types.UnionType):
        return " or ".join(_type(argument) for argument in arguments)
    if origin is typing.Literal:
        return " or ".join(f"`{argument}`" for argument in arguments)
    if origin in (list, tuple) and arguments:
        return f"[{_type(arguments[0])}, …]"
    simple = {str: "string", float: "number", int: "integer", bool: "boolean"}
    return simple.get(annotation, f"*{getattr(annotation, '__name__', annotation)}*")


def _table(head: tuple[str, ...], rows: list[tuple[str, ...]]) -> str:
    lines = [head, tuple("---" for _ in head), *rows]
    return "\n".join("| " + " | ".join(cell.replace("|", "\\|") for cell in line) + " |" for line in lines)


TABLES = {
    "settings": settings,
    "metrics": metric_table,
    "client": client_messages,
    "server": server_messages,
    "stages": stages,
    "result": result_fields,
}


if __name__ == "__main__":
    for path in map(Path, sys.argv[1:]):
        path.write_text(fill(path.read_text()))
