"""Whether an ensemble picks better answers: trains the pools, keeps all scores, and writes the results page.

    QUORUM_DATA=... python experiments/best_of_n/run.py --out runs/best_of_n [--only PREFIX] [--analyse]

Goes on where it stopped: a unit with a file in results/scores is not trained again.
"""

from __future__ import annotations

import argparse
import json
import time
from pathlib import Path

from analysis import analyse
from page import write_page
from plan import units
from texts import read_texts
from units import SCORES, make_scores


def main() -> None:
    """Units that are missing, one after another, then the analysis of those that are there."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "--out", type=Path, required=True, help="bundles and checkpoints; may be thrown away at the end"
    )
    parser.add_argument("--only", default="", help="units whose name begins so")
    parser.add_argument(
        "--analyse", action="store_true", help="train nothing: write the page from the scores there are"
    )
    options = parser.parse_args()
    options.out = options.out.resolve()  # a config names its data from where it lies itself
    options.out.mkdir(parents=True, exist_ok=True)
    texts = read_texts()
    for unit in units() if not options.analyse else ():
        if unit.name.startswith(options.only) and not (SCORES / f"{unit.name}.npz").exists():
            started = time.monotonic()
            make_scores(unit, texts, options.out)
            print(f"{unit.name}: {time.monotonic() - started:.0f} s", flush=True)
    figures = analyse(texts)
    folder = SCORES.parent
    (folder / "figures.json").write_text(json.dumps(figures, indent=1) + "\n", encoding="utf-8")
    write_page(figures, folder)


if __name__ == "__main__":
    main()
