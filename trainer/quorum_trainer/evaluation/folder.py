"""The folder of a report: report.json, report.md and plots, all of them or none.

    report  --temporary folder, rename-->  folder

Knows nothing of how figures are computed.
"""

from __future__ import annotations

import json
import tempfile
from pathlib import Path
from typing import Any

from quorum_client.errors import InvalidRequest
from quorum_trainer.evaluation.plots import draw_plots
from quorum_trainer.evaluation.tables import to_markdown


def check_folder(target: Path) -> None:
    """Refuse a folder that a report would mix with or overwrite.

    Raises:
        InvalidRequest: it holds something, is a file, or lies nowhere.
    """
    if target.is_dir() and any(target.iterdir()):
        raise InvalidRequest(f"report: {target} is not empty; give another folder")
    if target.exists() and not target.is_dir():
        raise InvalidRequest(f"report: {target} is a file")
    if not target.absolute().parent.is_dir():
        raise InvalidRequest(f"report: no such folder: {target.parent}")


def write_folder(target: Path, report: dict[str, Any]) -> None:
    """Write the folder.

    Args:
        target: checked by `check_folder`.
        report: see `report`.

    Raises:
        InvalidRequest: somebody filled it meanwhile.
    """
    target = target.absolute()
    with tempfile.TemporaryDirectory(dir=target.parent, prefix=f".{target.name}-") as staging:
        root = Path(staging) / "report"
        root.mkdir()
        plots = draw_plots(report, root)
        (root / "report.json").write_text(json.dumps(report, indent=1, allow_nan=False) + "\n", encoding="utf-8")
        (root / "report.md").write_text(to_markdown(report, plots), encoding="utf-8")
        try:
            root.rename(target)  # onto an empty folder too
        except OSError as error:
            raise InvalidRequest(f"report: {target} cannot be written: {error.strerror}") from error
