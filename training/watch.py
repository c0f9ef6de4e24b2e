"""A run as its log tells it, live in a terminal: from another one, or another machine that sees the folder."""

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from statistics import median
from typing import Any, Final, Literal

from rich.console import Console, Group, RenderableType
from rich.filesize import decimal
from rich.live import Live
from rich.progress_bar import ProgressBar
from rich.table import Table
from rich.text import Text

from cache_schema.vocabulary import REGIONS
from training.runlog import EVERYBODY, RoundRecord, read_events, rounds_of

Status = Literal["running", "silent", "finished", "failed", "killed"]

ENDS: Final[tuple[Status, ...]] = ("finished", "failed", "killed")
"""Events after which a log goes on only if the run is resumed."""

PATIENCE: Final = 3.0
"""A log is silent when it has said nothing for this many times its longest pause, and a minute."""
SHOWN_ROUNDS: Final = 8
WRAPPED: Final = ("trained", "absent", "refused")
"""Columns of a terminal's table that may be broken: the numbers of many clients."""
SPARKS: Final = "▁▂▃▄▅▆▇█"
SPARK_WIDTH: Final = 30
INTERVAL_S: Final = 1.0


@dataclass(frozen=True)
class Progress:
    """How far the round that is not finished yet is: by clients, or by steps of an epoch of all together.

    Attributes:
        round: Its number.
        began: When it began, in seconds since the epoch.
        asked: Who trains in it.
        absent: Who was asked and does not report.
        replied: Whose updates have come, in this order.
        refused: Whose updates were refused, and why.
        lost: Who was lost, and why.
        steps: Steps done and steps of the whole, in central training.
        loss: Of the last of these steps.
        seconds_per_step: Since this start of the run, if two lines of it tell.
    """

    round: int
    began: float
    asked: tuple[int, ...] = ()
    absent: tuple[int, ...] = ()
    replied: tuple[int, ...] = ()
    refused: tuple[tuple[int, str], ...] = ()
    lost: tuple[tuple[int, str], ...] = ()
    steps: tuple[int, int] | None = None
    loss: float | None = None
    seconds_per_step: float | None = None

    @property
    def share(self) -> float:
        """How much of the round is done, 0 to 1."""
        if self.steps is not None:
            return self.steps[0] / self.steps[1]
        return (len(self.replied) + len(self.lost)) / len(self.asked) if self.asked else 0.0


@dataclass(frozen=True)
class RunState:
    """What a log says about a run at a moment.

    Attributes:
        status: `silent` is a log that has not been written to for much longer than usual: the run was
            killed, or hangs.
        num_rounds: Of the whole run; None in logs of earlier releases.
        rounds: Those that are finished.
        progress: Of the round that is not, unless the run has ended.
        resumed: Rounds at which the run was resumed.
        silent_s: Since the last line.
        eta_s: Until the run is finished, if that can be said.
        problem: Why it failed, or what a board lacks; empty if nothing is known to be wrong.
    """

    status: Status
    num_rounds: int | None
    rounds: tuple[RoundRecord, ...]
    progress: Progress | None
    resumed: tuple[int, ...]
    silent_s: float
    eta_s: float | None
    problem: str


def state_of(events: Sequence[dict[str, Any]], now: float) -> RunState:
    """Work out the state of a run from its log.

    Args:
        events: Of the log, as `training.runlog.read_events` gives them.
        now: Seconds since the epoch. A clock that runs behind that of the machine that trains makes a
            run look more alive than it is.
    """
    rounds = rounds_of(events)
    num_rounds = next((e["rounds"] for e in reversed(events) if "rounds" in e), None)
    silent_s = max(now - events[-1]["time"], 0.0) if events else 0.0
    status = _status(events, silent_s)
    progress = None if status in ENDS else _progress(events)
    resumed = tuple(e.get("round") or e.get("epoch", 1) for e in events if e["event"] == "resumed")
    return RunState(
        status=status,
        num_rounds=num_rounds,
        rounds=rounds,
        progress=progress,
        resumed=resumed,
        silent_s=silent_s,
        eta_s=_eta_s(num_rounds, rounds, progress, now) if status == "running" else None,
        problem=_problem(events),
    )


def _latest_start(events: Sequence[dict[str, Any]]) -> Sequence[dict[str, Any]]:
    """Cut off what earlier starts of the run have logged."""
    starts = [k for k, event in enumerate(events) if event["event"] in ("started", "resumed")]
    return events[starts[-1] :] if starts else events


def _status(events: Sequence[dict[str, Any]], silent_s: float) -> Status:
    latest = _latest_start(events)
    ended = [event["event"] for event in latest if event["event"] in ENDS]
    if ended:
        status: Status = ended[0]
        return status
    times = [event["time"] for event in latest]
    pauses = [after - before for before, after in pairwise(times)]
    # Before the second line nobody knows how long a pause may be.
    return "silent" if pauses and silent_s > max(60.0, PATIENCE * max(pauses)) else "running"


def _progress(events: Sequence[dict[str, Any]]) -> Progress | None:
    """Follow the latest start: every `asked` begins a round, or the first `steps`; a `round` ends one."""
    asked: dict[str, Any] | None = None
    replies: list[dict[str, Any]] = []
    steps: list[dict[str, Any]] = []
    for event in _latest_start(events):
        if event["event"] in ("asked", "round"):
            asked, replies, steps = (event if event["event"] == "asked" else None), [], []
        elif event["event"] in ("reply", "lost"):
            replies.append(event)
        elif event["event"] == "steps":
            steps.append(event)
    if steps:
        return _progress_of_epoch(steps)
    if asked is None:
        return None
    return Progress(
        round=asked["round"],
        began=asked["time"],
        asked=tuple(asked["clients"]),
        absent=tuple(asked.get("absent", ())),
        replied=tuple(e["client"] for e in replies if e["event"] == "reply"),
        refused=tuple((e["client"], e["refused"]) for e in replies if e.get("refused")),
        lost=tuple((e["client"], e["reason"]) for e in replies if e["event"] == "lost"),
    )


def _progress_of_epoch(steps: Sequence[dict[str, Any]]) -> Progress:
    first, last = steps[0], steps[-1]
    since = last["done"] - first["done"]
    per_step = (last["time"] - first["time"]) / since if since else None
    return Progress(
        round=last["epoch"],
        began=first["time"] - first["done"] * (per_step or 0.0),
        steps=(last["done"], last["of"]),
        loss=last["loss"],
        seconds_per_step=per_step,
    )


def _eta_s(
    num_rounds: int | None, rounds: Sequence[RoundRecord], progress: Progress | None, now: float
) -> float | None:
    """Expect of every round that is left what the last five took in the median.

    In the first epoch of central training, what its steps take instead.
    """
    if num_rounds is None:
        return None
    if rounds:
        done, usual = rounds[-1].round, median(record.seconds for record in rounds[-5:])
    elif progress is not None and progress.steps is not None and progress.seconds_per_step:
        done, usual = progress.round - 1, progress.seconds_per_step * progress.steps[1]
    else:
        return None
    spent = 0.0 if progress is None else min(max(now - progress.began, 0.0), usual)
    return max((num_rounds - done) * usual - spent, 0.0)


def _problem(events: Sequence[dict[str, Any]]) -> str:
    latest = _latest_start(events)
    problems = [e.get("reason") or e.get("problem") or "" for e in latest]
    kinds = ("failed", "killed", "unsent")
    pairs = zip(latest, problems, strict=True)
    return "; ".join(text for event, text in pairs if event["event"] in kinds and text)


def render(name: str, state: RunState) -> RenderableType:
    """Show the state of a run."""
    parts: list[RenderableType] = [_headline(name, state)]
    if state.num_rounds:
        bar = Table.grid()  # a bar by itself ends without a new line
        bar.add_row(ProgressBar(total=state.num_rounds, completed=_completed(state), width=60))
        parts.append(bar)
    parts += [Text(line) for line in _lines(state)]
    if state.rounds:
        parts += [_curves(state.rounds), _table(state)]
    return Group(*parts)


def _headline(name: str, state: RunState) -> Text:
    of = f" of {state.num_rounds}" if state.num_rounds else ""
    done = state.rounds[-1].round if state.rounds else 0
    style = {"running": "green", "finished": "bold green", "silent": "bold yellow"}
    words = {
        "silent": f"silent for {_duration(state.silent_s)}: killed, or hanging",
        "killed": "stopped by Ctrl-C",
    }
    status = words.get(state.status, state.status)
    headline = Text.assemble(
        f"{name}: {done}{of} rounds, ", (status, style.get(state.status, "bold red"))
    )
    if state.rounds:
        headline.append(f", {median(r.seconds for r in state.rounds[-5:]):.1f} s a round")
    if state.eta_s is not None and state.status == "running":
        headline.append(f", about {_duration(state.eta_s)} left")
    return headline


def _completed(state: RunState) -> float:
    if state.progress is None:
        return float(state.rounds[-1].round) if state.rounds else 0.0
    return state.progress.round - 1 + state.progress.share


def _lines(state: RunState) -> list[str]:
    lines = []
    if state.progress is not None:
        lines.append(_describe(state.progress))
    if state.rounds and state.rounds[-1].total_bytes:
        last = state.rounds[-1]
        lines.append(
            f"exchanged: {decimal(last.num_bytes)} in round {last.round}, {decimal(last.total_bytes)} in all"
        )
    if state.resumed:
        lines.append(f"resumed at round {_numbers(state.resumed)}")
    if state.problem:
        lines.append(state.problem)
    return lines


def _describe(progress: Progress) -> str:
    if progress.steps is not None:
        done, of = progress.steps
        return f"epoch {progress.round}: {done} of {of} steps, loss {progress.loss:.4f}"
    waiting = [k for k in progress.asked if k not in {*progress.replied, *dict(progress.lost)}]
    text = f"round {progress.round}: {len(progress.replied)} of {len(progress.asked)} clients have reported"
    text += f", waiting for {_numbers(waiting)}" if waiting else ", aggregating"
    text += f", absent {_numbers(progress.absent)}" if progress.absent else ""
    text += "".join(f", {k} refused ({why})" for k, why in progress.refused)
    return text + "".join(f", {k} lost ({why})" for k, why in progress.lost)


def _curves(rounds: Sequence[RoundRecord]) -> Table:
    grid = Table.grid(padding=(0, 2))
    losses = [record.loss for record in rounds]
    grid.add_row("loss", sparkline(losses), f"{losses[-1]:.4f}")
    for region in REGIONS:
        values = [record.dice_of(region) for record in rounds]
        grid.add_row(f"Dice {region}", sparkline(values, 0.0, 1.0), f"{values[-1]:.3f}")
    return grid


def sparkline(values: Sequence[float], low: float | None = None, high: float | None = None) -> str:
    """Draw the last values as a line of blocks, between bounds that are theirs if none are given."""
    shown = [value for value in values[-SPARK_WIDTH:] if value == value]  # noqa: PLR0124 - not NaN
    if not shown:
        return ""
    low = min(shown) if low is None else low
    high = max(shown) if high is None else high
    span = (high - low) or 1.0
    steps = (int((value - low) / span * len(SPARKS)) for value in shown)
    return "".join(SPARKS[min(max(step, 0), len(SPARKS) - 1)] for step in steps)


def _table(state: RunState) -> Table:
    table = Table(
        caption="Dice on augmented training batches; clients by number",
        box=None,
        pad_edge=False,
    )
    for heading in ("round", "trained", "absent", "refused", "loss", *REGIONS, "exchanged", "s"):
        table.add_column(heading, justify="right", no_wrap=heading not in WRAPPED)
    for record in state.rounds[-SHOWN_ROUNDS:]:
        trained = [c.client for c in record.clients if c.refused is None]
        refused = [c.client for c in record.clients if c.refused is not None]
        table.add_row(
            str(record.round),
            "all together" if trained == [EVERYBODY] else _numbers(trained),
            _numbers(record.absent),
            _numbers(refused),
            f"{record.loss:.4f}",
            *(f"{record.dice_of(region):.3f}" for region in REGIONS),
            decimal(record.num_bytes) if record.num_bytes else "",
            f"{record.seconds:.1f}",
        )
    return table


def _numbers(values: Sequence[int]) -> str:
    """Write numbers with runs of neighbours drawn together: 0-3, 5."""
    groups: list[list[int]] = []
    for value in sorted(values):
        if groups and value == groups[-1][-1] + 1:
            groups[-1].append(value)
        else:
            groups.append([value])
    return ", ".join(f"{g[0]}-{g[-1]}" if len(g) > 1 else str(g[0]) for g in groups)


def _duration(seconds: float) -> str:
    if seconds < 90:
        return f"{seconds:.0f} s"
    minutes = round(seconds / 60)
    return f"{minutes} min" if minutes < 90 else f"{minutes // 60} h {minutes % 60} min"


def watch(
    run: Path,
    console: Console,
    *,
    once: bool = False,
    clock: Callable[[], float] = time.time,
    sleep: Callable[[float], None] = time.sleep,
) -> RunState:
    """Show a run until it ends, or Ctrl-C.

    Args:
        run: Its folder; only the log in it is read.
        console: Where to show it.
        once: Show it as it is now and return.
        clock: Tells seconds since the epoch.
        sleep: Waits.

    Returns:
        The state shown last.

    Raises:
        InputError: If the folder has no log.
    """
    state = state_of(read_events(run), clock())
    if once:
        console.print(render(run.name, state))
        return state
    try:
        with Live(render(run.name, state), console=console, auto_refresh=False) as live:
            while state.status not in ENDS:
                sleep(INTERVAL_S)
                state = state_of(read_events(run), clock())
                live.update(render(run.name, state), refresh=True)
    except KeyboardInterrupt:
        pass  # who watches has seen enough; the run goes on
    return state
