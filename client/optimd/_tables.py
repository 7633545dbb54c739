"""What the `optimd` command shows: tables and one-line pictures. Names are users' own, and never trusted as markup."""

from __future__ import annotations

import csv
import json
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict
from datetime import datetime
from itertools import pairwise
from typing import Any, Literal, TextIO

from rich.table import Table
from rich.text import Text

from optimd.models import Advice, Kept, OptimizerInfo, Reason, Recommendation, SessionInfo, Step

ROOMY = 110
"""Columns of a terminal from which on a row has room for everything."""
_BARS = "▁▂▃▄▅▆▇█"
_FORMULA_STARTS = ("=", "+", "-", "@", "\t", "\r")


def plain(value: object) -> Text:
    """A value as text that can neither style nor steer a terminal."""
    text = "" if value is None else str(value)
    return Text("".join(c if c.isprintable() else "�" for c in text), overflow="fold")


def number(value: float | None) -> str:
    return "–" if value is None else f"{value:.4g}"


def size(count: float) -> str:
    """A number of bytes as a person reads it."""
    for unit in ("B", "KiB", "MiB", "GiB"):
        if count < 1024:
            return f"{count:.4g} {unit}"
        count /= 1024
    return f"{count:.4g} TiB"


def _table(title: str, columns: Sequence[str], *, numeric: Collection[str] = (), whole: Collection[str] = ()) -> Table:
    """Args: numeric, whole: columns whose cells are not broken over lines; those of ``numeric`` stand to the right."""
    table = Table(title=plain(title), title_justify="left", header_style="bold")
    for column in columns:
        justify: Literal["left", "right"] = "right" if column in numeric else "left"
        no_wrap = column in numeric or column in whole
        header = Text("\n").join(map(plain, column.split("\n")))
        table.add_column(header, justify=justify, overflow="fold", no_wrap=no_wrap)
    return table


def sessions_table(sessions: Iterable[SessionInfo], width: int = ROOMY) -> Table:
    """One session a row, its id on one line; without memory and time where ``width`` columns have no room for them."""
    columns = ("id", "name", "status", "optimizer", "step", "parameters", "memory", "created")
    shown = len(columns) if width >= ROOMY else len(columns) - 2
    table = _table("Sessions", columns[:shown], numeric={"step", "parameters", "memory"}, whole={"id", "status"})
    for info in sessions:
        texts = (info["id"], info["name"], info["status"], info["optimizer"]["name"])
        created = _clock(datetime.fromisoformat(info["created_at"]))
        counts = (str(info["step"]), f"{info['parameters']:,}", size(info["bytes"]), created)
        table.add_row(*map(plain, (*texts, *counts)[:shown]))
    return table


_POLICY = ("schedule", "clip", "centralize", "maximize", "accumulate", "loss_scale", "loss_scale_now", "ema", "swa")
_KEPT = ("state_dtype", "grad_dtype")


def facts_table(info: SessionInfo) -> Table:
    table = _table(f"Session {info['id']}", ("field", "value"))
    table.show_header = False
    facts: dict[str, Any] = {key: info.get(key) for key in ("name", "status", "created_at", "step", "etag", "skipped")}
    facts |= {"optimizer": info["optimizer"]["name"], "parameters": f"{info['parameters']:,}"}
    facts |= {"memory": size(info["bytes"]), "nonfinite": info["nonfinite"]}
    policy = {key: info.get(key) for key in (*_POLICY, *_KEPT)}
    facts |= {key: _said(value) for key, value in policy.items() if value}
    for key, value in facts.items():
        table.add_row(key, plain(value))
    return table


def _said(policy: object) -> object:
    return json.dumps(policy) if isinstance(policy, dict) else policy


def groups_table(info: SessionInfo) -> Table:
    groups = info["hyperparameters"]
    names = list(dict.fromkeys(name for settings in groups.values() for name in settings))
    table = _table("Groups", ("group", *names))
    for group, settings in groups.items():
        table.add_row(plain(group), *(plain(settings.get(name)) for name in names))
    return table


def tensors_table(info: SessionInfo) -> Table:
    table = _table("Tensors, in layout order", ("tensor", "shape", "dtype", "role", "group"))
    for tensor in info.get("tensors", []):
        shape = " × ".join(map(str, tensor["shape"])) or "scalar"
        table.add_row(
            *map(plain, (tensor["name"], shape, tensor["dtype"], tensor.get("role", "trained"), tensor["group"]))
        )
    return table


def checkpoints_table(kept: Kept) -> Table:
    """One checkpoint a row; the title says which steps can be returned to."""
    stretches = (f"{first}" if first == last else f"{first} to {last}" for first, last in kept["retained"])
    title = f"Steps {', '.join(stretches)} can be returned to; checkpoints:"
    table = _table(title, ("step", "version", "labels", "size", "created"), numeric={"step", "size"}, whole={"version"})
    for made in kept["checkpoints"]:
        created = datetime.fromisoformat(made["created_at"])
        texts = (made["step"], made["etag"], ", ".join(made["labels"]), size(made["bytes"]), _clock(created))
        table.add_row(*map(plain, texts))
    return table


def optimizers_table(optimizers: Iterable[OptimizerInfo]) -> Table:
    columns = ("name", "summary", "state", "bytes/parameter")
    table = _table("Optimizers", columns, numeric={"bytes/parameter"}, whole={"name"})
    for info in optimizers:
        texts = (info["name"], info["summary"], ", ".join(info["state"]) or "none", number(info["bytes_per_parameter"]))
        table.add_row(*map(plain, texts))
    return table


def hyperparameters_table(info: OptimizerInfo) -> Table:
    table = _table(f"{info['name']}: {info['summary']}", ("hyperparameter", "default", "meaning"))
    described: Mapping[str, Any] = info["hyperparameters"].get("properties", {})
    for name, default in info["defaults"].items():
        table.add_row(*map(plain, (name, json.dumps(default), described.get(name, {}).get("description"))))
    table.caption = plain(info["source"])
    return table


def advice_tables(advice: Advice) -> Iterator[Table]:
    """The choices, why each of them, and what to mind; tables without a row are left out."""
    columns = ("optimizer", "settings", "state", "in all")
    choices = _table("Recommended, the best first", columns, numeric={"state", "in all"}, whole={"optimizer"})
    reasons = _table("Why", ("", "reason", "source"), whole={""})
    for found in advice["recommendations"]:
        sizes = (size(found["memory"]["state_bytes"]), size(found["memory"]["total_bytes"]))
        choices.add_row(plain(found["optimizer"]), _all_settings(found), *map(plain, sizes))
        _add_reasons(reasons, found["optimizer"], found["reasons"])
    warnings = _table("Mind", ("", "warning", "source"))
    _add_reasons(warnings, "", advice["warnings"])
    yield from (table for table in (choices, reasons, warnings) if table.row_count)


def _add_reasons(table: Table, name: str, reasons: Iterable[Reason]) -> None:
    for i, reason in enumerate(reasons):
        table.add_row(*map(plain, ("" if i else name, reason["text"], reason["source"])))


def _all_settings(found: Recommendation) -> Text:
    """The hyperparameters, and a line for each field beside them."""
    beside = {"schedule": _settings(found["schedule"]), "clip": _settings(found["clip"] or {})}
    groups = found["groups"]
    beside["groups"] = groups if isinstance(groups, str) else json.dumps(groups) if groups else ""
    beside["state_dtype"] = found["state_dtype"] if found["state_dtype"] != "f32" else ""
    lines = (f"{field}: {said}" for field, said in beside.items() if said)
    return Text("\n").join(map(plain, (_settings(found["hyperparameters"]), *lines)))


def _settings(values: Mapping[str, Any]) -> str:
    return ", ".join(value if name == "name" else f"{name} {json.dumps(value)}" for name, value in values.items())


_STEP_COLUMNS = ("step", "outcome", "lr", "loss", "grad_norm", "update_norm", "param_norm", "committed")


def steps_table(steps: Iterable[Step], title: str, width: int = ROOMY) -> Table:
    """One step a row; without the time, and under headings of two lines, where ``width`` columns have no more room."""
    shown = len(_STEP_COLUMNS) if width >= ROOMY else len(_STEP_COLUMNS) - 1
    columns = [name if width >= ROOMY else name.replace("_", "\n") for name in _STEP_COLUMNS[:shown]]
    table = _table(title, columns, numeric=set(columns) - {"outcome", "committed"}, whole={"committed"})
    for step in steps:
        table.add_row(*map(plain, step_cells(step)[:shown]))
    return table


def step_cells(step: Step) -> tuple[str, ...]:
    """One step in the columns of `steps_table`."""
    figures = (step.lr, step.loss, step.grad_norm, step.update_norm, step.param_norm)
    return (str(step.step), step.outcome, *map(number, figures), _clock(step.committed_at))


def _clock(at: datetime) -> str:
    return at.astimezone().strftime("%Y-%m-%d %H:%M:%S")


def sparkline(values: Sequence[float], width: int = 60) -> str:
    """The values as a row of bars, averaged where there are more of them than columns."""
    columns = min(width, len(values))
    cuts = [i * len(values) // columns for i in range(columns + 1)] if columns else [0]
    means = [sum(values[a:b]) / (b - a) for a, b in pairwise(cuts)]
    low, span = min(means, default=0.0), max(means, default=0.0) - min(means, default=0.0)
    return "".join(_BARS[int((mean - low) / span * (len(_BARS) - 1))] if span else _BARS[0] for mean in means)


def row(step: Step) -> dict[str, Any]:
    """One step as plain values."""
    return asdict(step) | {"committed_at": step.committed_at.isoformat()}


def write_json_lines(steps: Iterable[Step], out: TextIO) -> None:
    for step in steps:
        out.write(json.dumps(row(step)) + "\n")


def write_csv(steps: Iterable[Step], out: TextIO) -> None:
    """Rows under one header; a cell that a spreadsheet would take for a formula gets a quote in front."""
    writer: csv.DictWriter[str] | None = None
    for step in steps:
        cells = {name: _cell(value) for name, value in row(step).items()}
        if writer is None:
            writer = csv.DictWriter(out, cells)
            writer.writeheader()
        writer.writerow(cells)


def _cell(value: object) -> object:
    if isinstance(value, dict):
        return json.dumps(value)
    return "'" + value if isinstance(value, str) and value.startswith(_FORMULA_STARTS) else value
