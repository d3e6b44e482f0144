"""NDCG@10 against bytes: one config under several upload codecs, in one table and one plot.

    python -m simulations.communication [CONFIG] [--seeds 3] [--codecs dense int8 low_rank+int8:16] [--out DIR]

A codec is a chain of stages joined by "+", and after ":" the rank of `low_rank`. Bytes are what a node uploads in a
round; the ratio is to the same blocks as dense float32. Runs that are finished in DIR are not run again.
"""

from __future__ import annotations

import argparse
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from fedrec import config as configs
from fedrec.report.plots import DOTS_PER_INCH, LIGHT, MARKERS
from fedrec.run_folder import RunFolder
from fedrec.simulation import run_simulation

_HERE = Path(__file__).parent
CODECS = (
    "dense",
    "touched_rows",
    "int8",
    "low_rank:16",
    "low_rank+int8:1",
    "low_rank+int8:4",
    "low_rank+int8:8",
    "low_rank+int8:16",
    "low_rank+int8:64",
)


@dataclass(frozen=True)
class Outcome:
    """What the runs of one codec came to.

    Args:
        codec: as given on the command line.
        upload_bytes: of a node in a round.
        ratio: dense float32 bytes / upload_bytes.
        ndcg: NDCG@10 on the test split, one a seed.
    """

    codec: str
    upload_bytes: float
    ratio: float
    ndcg: tuple[float, ...]

    @property
    def mean(self) -> float:
        """Return the mean NDCG@10."""
        return float(np.mean(self.ndcg))

    @property
    def std(self) -> float:
        """Return the sample standard deviation over seeds; 0 for one seed."""
        return float(np.std(self.ndcg, ddof=1)) if len(self.ndcg) > 1 else 0.0


def settings_of(codec: str) -> list[str]:
    """Return the config settings of a codec such as `low_rank+int8:16`."""
    chain, _, rank = codec.partition(":")
    stages = ", ".join(f'"{stage}"' for stage in chain.split("+"))
    return [f"federated.upload_codec=[{stages}]", *([f"federated.codec_rank={rank}"] if rank else [])]


def measure(path: Path, codec: str, seeds: int, out: Path) -> Outcome:
    """Run a config with a codec on seeds 0, 1, ... and gather what is plotted."""
    results: list[dict[str, Any]] = []
    for seed in range(seeds):
        fixed = [f"runtime.seed={seed}", "evaluation.every=0", "evaluation.sampled_99=false"]
        config = configs.load(path, [*fixed, *settings_of(codec)])
        folder = RunFolder(out / f"{codec.replace('+', '-').replace(':', '-')}-seed-{seed}")
        folder.create(config)
        if not (folder.path / "result.json").exists():
            run_simulation(folder.path, config)
        results.append(folder.result())
    spent = [result["communication"] for result in results]
    return Outcome(
        codec,
        max(one["upload_bytes"] for one in spent),
        min(one["upload_ratio"] for one in spent),
        tuple(result["metrics"]["test"]["ndcg@10"] for result in results),
    )


def table(outcomes: list[Outcome]) -> str:
    """Return the outcomes as text; the loss is that of the mean, against the first row."""
    lines = [f"{'upload codec':<24}{'bytes':>12}{'float32 /':>11}{'NDCG@10':>18}{'loss':>9}"]
    for one in outcomes:
        loss = 1 - one.mean / outcomes[0].mean
        score = f"{one.mean:.4f} ± {one.std:.4f}"
        lines.append(f"{one.codec:<24}{one.upload_bytes:>12,.0f}{one.ratio:>10.1f}x{score:>18}{loss:>8.1%} ")
    return "\n".join(lines)


def draw(outcomes: list[Outcome], title: str, to: Path) -> None:
    """Draw NDCG@10 (mean and standard deviation over seeds) against upload bytes, and the 1% line below the first."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(7.2, 4.2), layout="constrained", facecolor=LIGHT.paper)
    axes = figure.subplots()
    first = outcomes[0]
    axes.axhspan(0.99 * first.mean, first.mean, color=LIGHT.series[2], alpha=0.12, linewidth=0)
    axes.annotate(
        f"at most 1% below {first.codec}",
        (1.0, 0.99 * first.mean),
        xycoords=("axes fraction", "data"),
        xytext=(-4, -3),
        textcoords="offset points",
        ha="right",
        va="top",
        fontsize=8,
        color=LIGHT.series[2],
    )
    families = list(dict.fromkeys(one.codec.partition(":")[0] for one in outcomes))
    for place, family in enumerate(families):
        own = [one for one in outcomes if one.codec.partition(":")[0] == family]
        axes.errorbar(
            [one.upload_bytes for one in own],
            [one.mean for one in own],
            yerr=[one.std for one in own],
            color=LIGHT.series[place % len(LIGHT.series)],
            marker=MARKERS[place % len(MARKERS)],
            markersize=6 if place else 11,
            markerfacecolor=None if place else "none",
            capsize=3,
            linewidth=1,
            label=family.replace("+", " + "),
        )
        for one in own:
            rank = one.codec.partition(":")[2]
            if one.ratio >= 1.5:
                label = f"rank {rank}, {one.ratio:.0f}x" if rank else f"{one.ratio:.1f}x"
                place_of = (one.upload_bytes, one.mean)
                paper = {"facecolor": LIGHT.paper, "alpha": 0.85, "linewidth": 0, "pad": 0.5}
                axes.annotate(label, place_of, (9, -10), textcoords="offset points", fontsize=8, bbox=paper, zorder=5)
    axes.set_xscale("log")
    axes.xaxis.set_major_formatter(lambda value, place: f"{value / 1e6:g} MB")
    axes.set_xlabel("uploaded by a node in a round (n x: dense float32 is n times larger)")
    axes.set_ylabel("NDCG@10, test, full ranking")
    axes.set_title(title, fontsize=10, color=LIGHT.ink)
    axes.grid(color=LIGHT.faint, linewidth=0.5, alpha=0.6)
    axes.spines[["top", "right"]].set_visible(False)
    axes.legend(frameon=False, fontsize=8, loc="lower right")
    figure.savefig(to, format="png", dpi=DOTS_PER_INCH, metadata={"Software": None})


def main() -> None:
    """Run them all, print the table and write the plot."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("config", type=Path, nargs="?", default=_HERE / "ml-1m-als.toml", help="without [privacy]")
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--codecs", nargs="+", default=list(CODECS), help="the first is what losses are measured by")
    parser.add_argument("--out", type=Path, default=None, help="folder for the runs and the plot")
    options = parser.parse_args()
    out = options.out or Path(tempfile.mkdtemp(prefix="communication-"))
    outcomes = [measure(options.config, codec, options.seeds, out) for codec in options.codecs]
    print(table(outcomes))
    plot = out / "ndcg-bytes.png"
    draw(outcomes, f"{options.config.stem}: NDCG@10 against bytes, {options.seeds} seeds", plot)
    print(f"plot: {plot}")


if __name__ == "__main__":
    main()
