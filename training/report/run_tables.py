"""Tables of a run: its settings, its rounds, and what went wrong in them."""

from collections.abc import Iterator, Mapping, Sequence
from typing import Any, Final

from cache_schema.vocabulary import REGIONS
from training.report.record import RunRecord
from training.report.table import NONE, PageTable, Row, duration, size
from training.runlog import EVERYBODY, RoundRecord, first_round_at

TARGETS: Final = (0.5, 0.6, 0.7, 0.8, 0.9)
"""Mean training Dice whose first rounds are shown."""


def settings_table(run: RunRecord) -> PageTable:
    """List every setting of a run, and what else its result depends on."""
    packages = run.provenance.get("packages", {})
    values = {
        **run.config.model_dump(),
        "trained on": run.provenance.get("device", NONE),
        "cache": run.provenance.get("manifest") or "each client's own",
        **packages,
        "python": run.provenance.get("python", NONE),
        "platform": run.provenance.get("platform", NONE),
    }
    rows = tuple(Row((name, _setting(value))) for name, value in values.items())
    return PageTable(f"All settings of {run.name}", (), rows, text_columns=(0, 1))


def difference_table(runs: Sequence[RunRecord]) -> PageTable:
    """List the settings in which runs differ, and what they cost."""
    settings = [run.config.model_dump() for run in runs]
    rows = [
        Row((name, *(_setting(each[name]) for each in settings)))
        for name in settings[0]
        if any(each[name] != settings[0][name] for each in settings)
    ]
    rows += [
        Row(("rounds done", *(str(len(run.rounds)) for run in runs))),
        Row(("training time", *(duration(run.seconds) for run in runs))),
        Row(("exchanged", *(size(_total_bytes(run)) for run in runs))),
        Row(("parameters", *(f"{run.parameters / 1e6:.2f} M" for run in runs))),
    ]
    header = ("", *(run.name for run in runs))
    return PageTable("What differs, and what it cost", header, tuple(rows))


def _setting(value: Any) -> str:  # noqa: ANN401 - any setting
    if isinstance(value, dict):
        return ", ".join(f"{name}={each}" for name, each in value.items()) or "none"
    return "none" if value is None else str(value)


def _total_bytes(run: RunRecord) -> int:
    return run.rounds[-1].total_bytes if run.rounds else 0


def round_table(run: RunRecord) -> PageTable:
    """Show all that the log says of every round."""
    rows = [Row(_round_cells(record)) for record in run.rounds]
    header = (
        "round",
        "loss",
        *(f"Dice {region}" for region in REGIONS),
        "trained",
        "absent",
        "refused",
    )
    header += ("received", "sent", "in all", "s")
    return PageTable(
        "Round by round; Dice on augmented training batches, bytes of all clients together",
        header,
        tuple(rows),
        text_columns=(),
    )


def _round_cells(record: RoundRecord) -> tuple[str, ...]:
    sound = [client for client in record.clients if client.refused is None]
    together = [client.client for client in sound] == [EVERYBODY]
    return (
        str(record.round),
        f"{record.loss:.4f}",
        *(f"{record.dice_of(region):.3f}" for region in REGIONS),
        "all together" if together else str(len(sound)),
        str(len(record.absent)),
        str(len(record.clients) - len(sound)),
        size(sum(client.bytes_received for client in record.clients)),
        size(sum(client.bytes_sent for client in record.clients)),
        size(record.total_bytes),
        f"{record.seconds:.1f}",
    )


def target_table(run: RunRecord) -> PageTable:
    """Show the first rounds that reached some training Dice."""
    reached = (first_round_at(run.rounds, dice) for dice in TARGETS)
    return PageTable(
        "First round at a mean Dice of the three regions, on augmented training batches",
        ("Dice", *(f"{dice:g}" for dice in TARGETS)),
        (Row(("round", *(str(round_number or "none") for round_number in reached))),),
    )


def trouble_table(run: RunRecord) -> PageTable | None:
    """List who was absent, lost or refused in which round and why, and when a run was resumed."""
    reasons = {(e["round"], e["client"]): e["reason"] for e in run.events if e["event"] == "lost"}
    rows = [row for record in run.rounds for row in _trouble_of(record, reasons)]
    for event in run.events:
        if event["event"] == "resumed":
            number = event.get("round", event.get("epoch", 1))
            rows.append(Row((str(number), NONE, "resumed", "went on after an interruption")))
    rows.sort(key=lambda row: int(row.cells[0]))
    header = ("round", "client", "what", "why")
    return PageTable("What did not go as planned", header, tuple(rows), (2, 3)) if rows else None


def _trouble_of(record: RoundRecord, reasons: Mapping[tuple[int, int], str]) -> Iterator[Row]:
    for client in record.absent:
        reason = reasons.get((record.round, client))
        what = ("absent", "did not report") if reason is None else ("lost", reason)
        yield Row((str(record.round), str(client), *what))
    for part in record.clients:
        if part.refused is not None:
            yield Row((str(record.round), str(part.client), "refused", part.refused))
