"""Claims against attacks: one model without privacy and under several epsilons, audited, in one figure.

    python -m simulations.audit --out runs/audit

writes a folder an audit, as `fedrec audit` does, and `audit.png` over all of them.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

from fedrec import audits
from fedrec.audit.audit import Settings, run_audit
from fedrec.config import load
from fedrec.files import replace_file
from fedrec.report.audit import Audit, parse_audit
from fedrec.report.audit_plot import audit_plot
from fedrec.report.plots import LIGHT, png

HERE = Path(__file__).parent


def main(arguments: Sequence[str] | None = None) -> None:
    """Audit every claim and draw the figure."""
    given = _parser().parse_args(arguments)
    work = Settings(num_canaries=given.canaries, num_runs=given.runs, num_shadows=given.shadows)
    done: dict[str, Audit] = {}
    for label, config, settings in [
        ("no privacy", given.without, given.set),
        *((f"epsilon {e:g}", given.under, [*given.set, f"privacy.target_epsilon={e}"]) for e in given.epsilon),
    ]:
        print(f"== {label}", file=sys.stderr)
        folder = given.out / label.replace(" ", "-")
        audits.make_folder(folder)
        found = run_audit(load(config, settings), work, lambda text: print(text, file=sys.stderr))
        print(audits.write_audit(folder, found), end="\n\n")
        done[label] = parse_audit(found, label)
    replace_file(given.out / "audit.png", png(lambda theme: audit_plot(done, theme), LIGHT))
    print(given.out / "audit.png")


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--out", type=Path, default=Path("runs/audit"))
    parser.add_argument("--without", type=Path, default=HERE / "ml-100k-als.toml", help="config without privacy")
    parser.add_argument("--under", type=Path, default=HERE / "ml-100k-als-dp8.toml", help="config with a plan")
    parser.add_argument("--epsilon", type=float, nargs="+", default=[8.0, 1.0])
    parser.add_argument("--set", action="append", default=[], metavar="SECTION.KEY=VALUE")
    parser.add_argument("--canaries", type=int, default=1000)
    parser.add_argument("--runs", type=int, default=5)
    parser.add_argument("--shadows", type=int, default=16)
    return parser


if __name__ == "__main__":
    main()
