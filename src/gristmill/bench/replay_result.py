"""The result of strategies raced on recorded spaces, as a value, as JSON, and as an HTML page with
their anytime curves."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from gristmill.bench.figures import INK, MUTED, Figure, colours, drawing, svg, ticks
from gristmill.bench.page import (
    Block,
    Cell,
    Column,
    Line,
    Section,
    Table,
    Tile,
    check_extra,
    number,
    render,
)
from gristmill.bench.tree import ROOT
from gristmill.core.plan import Candidate
from gristmill.tuning.recorded import Recording, load_recording
from gristmill.tuning.replay import BATCH, MILESTONES, WITHHELD, Curve, Replay

SPACES = ROOT / "benchmarks" / "spaces"  # a folder a device, as `results`
CHANCE = "chance"  # beside the strategies' names
SHARES = (0.9, 0.95, 0.98)  # lines of the figure
WIDTH, HEIGHT = 9.6, 3.6  # inches
LEGEND = (
    "Each number is the time of the fastest recorded config over that of the best that the "
    "strategy had found after so many evaluations: the mean of the seeds, and the worst of them. "
    "`chance` is the exact expectation of uniform draws, without replacement, from all recorded "
    "configs; `random` draws within an implementation, and takes turns between them as every "
    "strategy does. A failed config is an evaluation. Withheld from every strategy: "
    f"{WITHHELD}."
)


@dataclass(frozen=True)
class ReplayResult:
    """The curves of one recording.

    Attributes:
        name: the file's.
        optimum: the fastest recorded config, in `optimum_us` microseconds.
        right: configs that were right, of those recorded.
        near_share: the share of them within 5% of the optimum.
        chance: what uniform draws from all recorded configs reach, after every evaluation.
    """

    name: str
    recording: Recording
    optimum: Candidate
    optimum_us: float
    right: int
    near_share: float
    curves: tuple[Curve, ...]
    chance: tuple[float, ...]

    @property
    def milestones(self) -> list[int]:
        """The evaluations that tables show."""
        last = len(self.chance)
        return [m for m in MILESTONES if m <= last] or [last]

    @property
    def device(self) -> str:
        """What it was recorded on."""
        return self.recording.target.name

    def to_json(self) -> dict[str, Any]:
        """Facts of the recording, and every strategy's curve."""
        recording = self.recording
        return {
            "name": self.name,
            "problem": str(recording.problem),
            "device": self.device,
            "stamp": dict(recording.stamp),
            "recorded": len(recording.points),
            "valid_space": recording.valid,
            "missing": recording.missing,
            "right": self.right,
            "within_5_percent": self.near_share,
            "optimum": str(self.optimum),
            "optimum_us": self.optimum_us,
            "withheld": WITHHELD,
            "chance": {
                "mean": {str(m): self.chance[m - 1] for m in self.milestones},
                "mean_curve": list(self.chance),
            },
            "strategies": [self._curve_json(curve) for curve in self.curves],
        }

    def _curve_json(self, curve: Curve) -> dict[str, Any]:
        at = self.milestones
        return {
            "strategy": curve.strategy,
            "seeds": len(curve.seeds),
            "evaluations": curve.evaluations,
            "ask_s": curve.ask_s,
            "mean": {str(m): curve.mean[m - 1] for m in at},
            "worst": {str(m): curve.worst[m - 1] for m in at},
            "mean_curve": list(curve.mean),
            "worst_curve": list(curve.worst),
        }


def replayed(
    path: Path,
    strategies: Sequence[str],
    seeds: int,
    evaluations: int,
    batch: int = BATCH,
) -> ReplayResult:
    """Strategies raced on the recording in a file, each with the seeds 0, 1, ...

    Raises:
        ArtifactError: the file is no recording, damaged or of another version.
        InvalidInputError: nothing in it was right; an unknown strategy.
    """
    recording = load_recording(path)
    replay = Replay(recording)
    return ReplayResult(
        path.name.partition(".")[0],
        recording,
        replay.optimum,
        replay.optimum_us,
        len(replay.times),
        recording.near_share(),
        tuple(replay.race(name, range(seeds), evaluations, batch) for name in strategies),
        replay.chance(evaluations),
    )


def committed_spaces() -> list[Path]:
    """The recorded spaces of this checkout; none in an installed package."""
    return sorted(SPACES.glob("*/*.jsonl.gz"))


def replay_page(results: Sequence[ReplayResult]) -> str:
    """Replays as one self-contained HTML page: anytime curves, tables, provenance.

    Raises:
        MissingExtraError: matplotlib or jinja2 is not installed.
    """
    check_extra()
    devices = ", ".join(dict.fromkeys(result.device for result in results))
    sections = [_section(result, f"space{i}") for i, result in enumerate(results, 1)]
    lead = f"recorded on {devices}; withheld from every strategy: {WITHHELD}"
    return render("gristmill replay of search strategies", lead, sections)


def _section(result: ReplayResult, name: str) -> Section:
    recording, stamp = result.recording, result.recording.stamp
    facts = [("recorded on", result.device), ("optimum", str(result.optimum))]
    known = ("commit", "date", "command", "tree")
    facts += [(key, str(stamp[key])) for key in known if stamp.get(key)]
    facts += [(key, str(value)) for key, value in (stamp.get("versions") or {}).items() if value]
    best = max(result.curves, key=lambda curve: curve.mean[-1], default=None)
    warnings = [f"{recording.missing} planned configs are not recorded yet."]
    return Section(
        name,
        result.name,
        (
            Block(figure=figure(result, name)),
            Block(title="Share of the optimum", table=_table(result), text=LEGEND),
        ),
        tuple(facts),
        subtitle=str(recording.problem),
        summary=best.strategy if best else "",
        tiles=(
            Tile(f"{len(recording.points):,}", f"configs recorded, of {recording.valid:,} valid"),
            Tile(f"{result.right:,}", "of them right"),
            Tile(f"{result.near_share:.1%}", "of those within 5% of the optimum"),
            Tile(f"{result.optimum_us:,.2f} us", "the optimum"),
        ),
        warnings=tuple(warnings) if recording.missing else (),
    )


def _table(result: ReplayResult) -> Table:
    at = result.milestones
    pairs = [(Column(f"{m}, mean", True), Column(f"{m}, worst", True, "of the seeds")) for m in at]
    columns = (
        Column("strategy"),
        *(column for pair in pairs for column in pair),
        Column("own, s", True, "seconds that the strategy took for a search"),
    )
    lines = []
    for curve in result.curves:
        shares = [number(c[m - 1], 3) for m in at for c in (curve.mean, curve.worst)]
        lines.append(Line((Cell(curve.strategy), *shares, number(curve.ask_s, 1))))
    chance = [cell for m in at for cell in (number(result.chance[m - 1], 3), Cell(""))]
    lines.append(Line((Cell(CHANCE), *chance, Cell(""))))
    return Table(columns, tuple(lines))


def _at(shares: Sequence[float], milestones: Sequence[int]) -> str:
    return ", ".join(f"{shares[m - 1]:.3f} after {m}" for m in milestones)


def figure(result: ReplayResult, name: str) -> Figure:
    """The anytime curves: the mean of the seeds as a line, from worst to best as a band;
    chance dashed."""
    looks = colours([curve.strategy for curve in result.curves])
    with drawing(WIDTH, HEIGHT) as canvas:
        axis = canvas.figure.subplots()
        for curve in result.curves:
            colour, marker = looks[curve.strategy]
            xs = range(1, curve.evaluations + 1)
            band = axis.fill_between(xs, curve.worst, curve.best, color=colour, alpha=0.12, lw=0)
            canvas.tip(band, f"{curve.strategy}: the worst to the best of {len(curve.seeds)} seeds")
            (line,) = axis.plot(
                xs, curve.mean, color=colour, marker=marker, markersize=4.5, label=curve.strategy,
                markevery=[m - 1 for m in result.milestones],
            )  # fmt: skip
            canvas.tip(line, f"{curve.strategy}: {_at(curve.mean, result.milestones)}")
        xs = range(1, len(result.chance) + 1)
        (line,) = axis.plot(xs, result.chance, color=INK, linestyle="--", lw=1.2, label=CHANCE)
        canvas.tip(line, f"{CHANCE}: {_at(result.chance, result.milestones)}")
        for share in SHARES:
            axis.axhline(share, color=MUTED, linewidth=0.6, linestyle=":")
        axis.set_xlabel("evaluations")
        axis.set_ylabel("share of the optimum")
        axis.set_ylim(min((c.mean[0] for c in result.curves), default=0.0) * 0.9, 1.01)
        axis.set_xlim(1, max((c.evaluations for c in result.curves), default=2))
        ticks(axis.yaxis, lambda value: f"{value:.2f}")
        axis.grid()
        canvas.figure.legend(loc="outside upper left", ncols=7, borderaxespad=0.2)
        drawn = svg(canvas, f"{name}-anytime", f"Share of the optimum on {result.name}")
    caption = (
        "Line: the mean of the seeds; band: from the worst to the best of them. Dashed: chance. "
        f"Dotted: {', '.join(f'{share:g}' for share in SHARES)} of the optimum."
    )
    return Figure(f"{name}-anytime", "Share of the optimum over evaluations", caption, drawn)
