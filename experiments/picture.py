"""A figure as PNG, by headless Chromium; and as a script, the intervals of a comparison.

python experiments/picture.py COMPARE_FOLDER OUT.png "title" "what is measured"
"""

from __future__ import annotations

import csv
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

import plotly.graph_objects as go

from fuserl.reporting.figures import intervals
from fuserl.reporting.statistics import Interval

QUIET = (
    "--headless", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--disable-background-networking",
    "--disable-component-update", "--disable-sync", "--hide-scrollbars", "--force-device-scale-factor=1.5",
)  # fmt: skip


def picture(figure: go.Figure, path: Path, *, width: int = 900, height: int = 420) -> None:
    """Draw the figure, `width` by `height` points.

    Raises:
        SystemExit: there is no Chromium on this machine.
    """
    program = shutil.which("chromium") or shutil.which("google-chrome")
    if program is None:
        raise SystemExit("no chromium on this machine; Debian's package is called chromium")
    with tempfile.TemporaryDirectory() as name:
        page = Path(name) / "figure.html"
        figure.update_layout(width=width, height=height)
        figure.write_html(page, config={"staticPlot": True})
        subprocess.run(
            [program, *QUIET, f"--user-data-dir={name}/profile", f"--window-size={width + 16},{height + 16}", "--virtual-time-budget=4000", f"--screenshot={path.absolute()}", page.as_uri()],
            check=True, capture_output=True, timeout=120,
        )  # fmt: skip


def main(out: Path, title: str, folders: list[Path]) -> None:
    """Every method's mean with its interval; of several comparisons each method says whose it is."""
    rows: dict[str, Interval] = {}
    for folder in folders:
        before = f"{folder.name.removeprefix('compare_')}, " if len(folders) > 1 else ""
        with (folder / "table.csv").open(newline="", encoding="utf-8") as file:
            for row in csv.DictReader(file):
                name = before + row["method"].lstrip("'")
                rows[name] = Interval(float(row["mean"]), float(row["low"]), float(row["high"]))
                measured = row["metric"]
    picture(intervals(rows, title=title, x=measured), out, height=140 + 34 * len(rows))


if __name__ == "__main__":
    main(Path(sys.argv[1]), sys.argv[2], [Path(folder) for folder in sys.argv[3:]])
