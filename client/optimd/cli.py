"""The `optimd` command: look at a server's sessions and their histories."""

from __future__ import annotations

import json
import sys
import time
from collections import deque
from collections.abc import Iterable, Iterator
from typing import Annotated, Any, cast, get_args

import typer
from rich.console import Console
from rich.progress import Progress
from typer.core import TyperGroup

import optimd
from optimd import _tables as tables
from optimd.client import Client
from optimd.errors import ConnectionFailed, NotFound, OptimdError
from optimd.models import ModelKind, SessionStatus, Step, Symptom, TaskFields, WireDtype
from optimd.session import Session

_PAGE_ROWS = 1000
_POLL_S = 1.0
_SYMPTOMS = ", ".join(get_args(Symptom))


class _Commands(TyperGroup):
    """Shows an error as one line, and no traceback: the person at the terminal did not write this program."""

    def invoke(self, ctx: Any) -> Any:
        try:
            return super().invoke(ctx)
        except OptimdError as error:
            _console(stderr=True).print(
                tables.plain(f"{error} {_advice(error)}".strip()), style="bold red", soft_wrap=True
            )
            raise typer.Exit(1) from error


def _advice(error: OptimdError) -> str:
    if isinstance(error, ConnectionFailed):
        return "Is the server running there? Name another with --url or OPTIMD_URL."
    if isinstance(error, NotFound):
        return "`optimd sessions --status all` lists what there is."
    return ""


app = typer.Typer(cls=_Commands, no_args_is_help=True, pretty_exceptions_enable=False, add_completion=False)

SessionId = Annotated[str, typer.Argument(metavar="ID", help="The session's id.", show_default=False)]


def _console(*, stderr: bool = False) -> Console:
    """A terminal's own width; wide enough for a whole row where the output goes to a file or a pipe."""
    console = Console(stderr=stderr)
    return console if console.is_terminal else Console(stderr=stderr, width=200)


def _show_version(wanted: bool) -> None:
    if wanted:
        typer.echo(optimd.__version__)
        raise typer.Exit


@app.callback()
def connect(
    ctx: typer.Context,
    url: Annotated[
        str | None,
        typer.Option(help="The server: http://host:port or unix:/path.", envvar="OPTIMD_URL", show_default=False),
    ] = None,
    _version: Annotated[bool, typer.Option("--version", callback=_show_version, is_eager=True)] = False,
) -> None:
    """Look at the sessions of an optimd server and at their histories."""
    ctx.obj = ctx.with_resource(Client(url, retries=0))


@app.command()
def sessions(
    ctx: typer.Context,
    status: Annotated[SessionStatus, typer.Option(help="Which ones.")] = "live",
) -> None:
    """List the sessions, oldest first."""
    found, console = list(ctx.obj.sessions(status)), _console()
    if found:
        console.print(tables.sessions_table(found, console.width))
    else:
        console.print(f"No sessions of status {status!r}.", markup=False)


@app.command()
def show(ctx: typer.Context, session_id: SessionId) -> None:
    """Show one session: where it stands, its hyperparameters, its tensors."""
    info = ctx.obj.session(session_id).info
    for table in (tables.facts_table(info), tables.groups_table(info), tables.tensors_table(info)):
        _console().print(table)


@app.command()
def history(
    ctx: typer.Context,
    session_id: SessionId,
    last: Annotated[int, typer.Option(min=0, help="How many steps; 0 for all.")] = 20,
    follow: Annotated[bool, typer.Option("--follow", help="Go on as steps are committed.")] = False,
    as_json: Annotated[bool, typer.Option("--json", help="One JSON object a line.")] = False,
    as_csv: Annotated[bool, typer.Option("--csv", help="Comma-separated, with a header.")] = False,
) -> None:
    """Show the last steps of a session: what each one did."""
    if as_json and as_csv:
        raise typer.BadParameter("choose one of --json and --csv")
    session: Session = ctx.obj.session(session_id)
    steps = _last_steps(session, last)
    if as_json:
        tables.write_json_lines(_and_following(session, steps, follow), sys.stdout)
    elif as_csv:
        tables.write_csv(_and_following(session, steps, follow), sys.stdout)
    else:
        _print_steps(session, steps, follow)


@app.command()
def optimizers(
    ctx: typer.Context,
    name: Annotated[str | None, typer.Argument(help="One of them, in detail.", show_default=False)] = None,
) -> None:
    """List the optimizers that the server offers, or show one with its hyperparameters."""
    if name is None:
        _console().print(tables.optimizers_table(ctx.obj.optimizers()))
    else:
        _console().print(tables.hyperparameters_table(ctx.obj.optimizer(name)))


@app.command()
def advice(
    ctx: typer.Context,
    *,
    model: Annotated[ModelKind, typer.Option(help="The kind of model.", show_default=False)],
    parameters: Annotated[int, typer.Option(help="How many are trained.", show_default=False)],
    examples: Annotated[int | None, typer.Option(help="In the training data.", show_default=False)] = None,
    batch_size: Annotated[int | None, typer.Option(help="Examples a step.", show_default=False)] = None,
    steps: Annotated[int | None, typer.Option(help="Planned updates.", show_default=False)] = None,
    epochs: Annotated[int | None, typer.Option(help="In place of --steps.", show_default=False)] = None,
    memory_bytes: Annotated[int | None, typer.Option(help="Room for the state.", show_default=False)] = None,
    precision: Annotated[WireDtype | None, typer.Option(help="Of the gradients.", show_default=False)] = None,
    symptom: Annotated[
        list[str] | None, typer.Option(help=f"Seen in training; each of {_SYMPTOMS}.", show_default=False)
    ] = None,
    fine_tuning: Annotated[bool, typer.Option("--fine-tuning", help="From trained weights.")] = False,
    sparse: Annotated[bool, typer.Option("--sparse", help="Most gradients are zero.")] = False,
    noisy_labels: Annotated[bool, typer.Option("--noisy-labels", help="Many labels are wrong.")] = False,
    as_json: Annotated[bool, typer.Option("--json", help="The whole answer as JSON.")] = False,
) -> None:
    """Recommend optimizers for a training task, with settings, memory and reasons."""
    data = _given(examples=examples, sparse=sparse or None, noisy_labels=noisy_labels or None)
    said = _given(batch_size=batch_size, steps=steps, epochs=epochs, memory_bytes=memory_bytes, precision=precision)
    said |= _given(fine_tuning=fine_tuning or None, symptoms=symptom or None, data=data or None)
    found = ctx.obj.advice(model, parameters, **cast("TaskFields", said))
    if as_json:
        typer.echo(json.dumps(found, indent=2))
    else:
        for table in tables.advice_tables(found):
            _console().print(table)


def _given(**options: Any) -> dict[str, Any]:
    return {name: value for name, value in options.items() if value is not None}


@app.command()
def delete(
    ctx: typer.Context,
    session_id: SessionId,
    yes: Annotated[bool, typer.Option("--yes", "-y", help="Do not ask.")] = False,
) -> None:
    """Remove a session, its weights and its history."""
    session = ctx.obj.session(session_id)
    name = tables.plain(session.info["name"] or session_id)
    if not yes:
        typer.confirm(f"Delete {name} with its {session.info['step']} steps?", abort=True)
    session.delete()
    _console().print(f"Deleted {session_id}.", markup=False)


Label = Annotated[str | None, typer.Option(help="Of a checkpoint.", show_default=False)]
StepNumber = Annotated[int | None, typer.Option(min=0, help="Behind this step.", show_default=False)]


@app.command()
def checkpoint(ctx: typer.Context, session_id: SessionId, label: Label = None) -> None:
    """Keep a session as it stands now."""
    made = ctx.obj.session(session_id).checkpoint(label)
    named = "" if label is None else f" as {label!r}"
    _say(f"Kept step {made['step']} of {session_id}{named}.")


@app.command()
def checkpoints(ctx: typer.Context, session_id: SessionId) -> None:
    """List what a session can go back to."""
    kept = ctx.obj.session(session_id).checkpoints()
    _console().print(tables.checkpoints_table(kept))


@app.command()
def rollback(ctx: typer.Context, session_id: SessionId, step: StepNumber = None, label: Label = None) -> None:
    """Return to where a session stood: its weights, state, settings and history."""
    if (step is None) == (label is None):
        raise typer.BadParameter("say where to go back to: --step or --label")
    report = ctx.obj.session(session_id).rollback(step=step, label=label)
    _say(f"{session_id} stands at {report['etag']}; it stood at {report['left']}.")


@app.command()
def fork(
    ctx: typer.Context,
    session_id: SessionId,
    *,
    step: StepNumber = None,
    label: Label = None,
    name: Annotated[str | None, typer.Option(help="Of the new session.", show_default=False)] = None,
    optimizer: Annotated[str | None, typer.Option(help="Another optimizer.", show_default=False)] = None,
    lr: Annotated[float | None, typer.Option(help="Another learning rate.", show_default=False)] = None,
) -> None:
    """Make a session that begins where another stands, or stood."""
    settings = _given(name=optimizer, lr=lr)
    changes = _given(name=name, optimizer=settings or None)
    branch = ctx.obj.session(session_id).fork(step=step, label=label, **changes)
    _say(f"{branch.id} begins at step {branch.info['step']} of {session_id}.")


def _say(text: str) -> None:
    _console().print(text, markup=False, highlight=False)


def _last_steps(session: Session, last: int) -> list[Step]:
    """The last steps, ascending; many pages are fetched under a progress bar, on stderr to leave stdout to the rows."""
    newest = session.info["step"]
    wanted = min(last or newest, newest)
    rows: Iterable[Step] = session.history(after=newest - wanted)
    if wanted <= _PAGE_ROWS:
        return list(deque(rows, maxlen=last or None))
    with Progress(console=_console(stderr=True), transient=True) as progress:
        return list(deque(progress.track(rows, total=wanted, description="Reading history"), maxlen=last or None))


def _print_steps(session: Session, steps: list[Step], follow: bool) -> None:
    console = _console()
    console.print(tables.steps_table(steps, f"Last {len(steps)} of {session.info['step']} steps", console.width))
    losses = [step.loss for step in steps if step.loss is not None]
    if len(losses) > 1:
        console.print(
            f"loss {losses[0]:.4g} {tables.sparkline(losses)} {losses[-1]:.4g}", markup=False, highlight=False
        )
    for step in _following(session, steps) if follow else ():
        console.print(*tables.step_cells(step), sep="  ", markup=False, highlight=False)


def _and_following(session: Session, steps: list[Step], follow: bool) -> Iterator[Step]:
    yield from steps
    if follow:
        yield from _following(session, steps)


def _following(session: Session, steps: list[Step]) -> Iterator[Step]:
    """Steps as they are committed, until the session is gone or the person has seen enough."""
    seen = steps[-1].step if steps else session.info["step"]
    try:
        while True:
            for step in session.history(after=seen):
                seen = step.step
                yield step
            time.sleep(_POLL_S)
    except (KeyboardInterrupt, NotFound):
        return
