"""From what a benchmark printed to the tables of README.md and docs/.

    python benchmarks/movielens_quality.py --only bags --only best > out.txt
    python -m benchmarks.measured movielens out.txt

What a table shows is kept in `docs/measured/<name>.json` with the seeds, the
machine and the versions, under a fingerprint of all of it, which the table
names. The documents have it between `<!-- measured: NAME -->` and
`<!-- end -->`; a test renders them again.
"""

import argparse
import hashlib
import json
import re
import textwrap
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
FOLDER = ROOT / "docs" / "measured"
PAGES = (ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md")))

Json = dict[str, Any]
_BLOCK = re.compile(
    r"(?<=<!-- measured: )(\w+)( -->\n).*?(?=<!-- end -->)", re.DOTALL
)


def movielens(printed: Json) -> Json:
    """Of `movielens_quality.py`, with `bags` and, if it ran, `best`."""
    rows = (
        "hit_rate_at_10_seen_removed",
        "hit_rate_at_50",
        "hit_rate_at_100",
    )
    ours = {"bags": "bags", "three towers": "best"}
    columns = {
        title: f"{section}.retrieval."
        for title, section in ours.items()
        if section in printed
    } | {
        title: f"bags.baselines.{name}."
        for title, name in (
            ("co-watch", "co_watch"),
            ("EASE", "ease"),
            ("implicit ALS", "implicit_als"),
            ("popularity", "popularity"),
        )
    }
    notes = []
    for title, section in ours.items():
        if section in printed:
            notes.append(f"{title}: {_cost(printed, section, rows[0])}")
    return {
        "columns": list(columns),
        "rows": {
            row: [printed[prefix + row] for prefix in columns.values()]
            for row in rows
        },
        "notes": notes,
        "machine": printed["machine"],
    }


def _cost(printed: Json, section: str, row: str) -> str:
    """The seeds, how far they are apart, and what a training takes."""
    seeds = [str(run["seed"]) for run in printed[section]]
    said = f"seed {seeds[0]}"
    if len(seeds) > 1:
        spread = printed[f"{section}.retrieval.{row}.spread"]
        said = f"seeds {', '.join(seeds)}, {spread:.3f} apart in the first row"
    cpu_minutes = printed[f"{section}.training_cpu_s"] / 60
    return f"{said}, {cpu_minutes:.0f} minutes of CPU for a training"


def kuairand(printed: Json) -> Json:
    """Of `ranking_quality.py`: in each row the trees' best objective."""
    runs = printed["runs"]

    def mean(name: str, metric: str) -> float:
        return sum(float(run[name][metric]) for run in runs) / len(runs)

    compared = ("auc_click", "auc_long_view", "watch_time_xauc")
    compared += ("weighted_per_user_loss",)
    rows = {
        row: [printed[row], printed[row] - printed[f"{row}_minus_lightgbm"]]
        for row in compared
    }
    # Not every objective gives seconds. Calibration is best at 1.
    for row, ideal in (("watch_time_mae_s", 0.0), ("calibration", 1.0)):
        trees = [
            mean(name, row)
            for name, metrics in runs[0].items()
            if name.startswith("lightgbm.") and row in metrics
        ]
        best = min(trees, key=lambda value: abs(value - ideal))
        rows[row] = [mean("ours", row), best]
    seeds = ", ".join(str(run["seed"]) for run in runs)
    return {
        "columns": ["watchnext", "LightGBM"],
        "rows": rows,
        "notes": [f"seeds {seeds}"],
        "machine": printed["machine"],
    }


def refresh(printed: Json) -> Json:
    """Of `refresh.py`."""
    models = {
        "refresh": "refresh",
        "full retrain": "full",
        "moved weights, no step": "moved",
    }
    rows = {
        name: [printed["models"][model][name] for model in models.values()]
        for name in ("hit_rate_at_100", "new_videos_hit_rate")
    }
    steps = printed["steps"]
    rows["steps"] = [steps["refresh"], steps["full"], 0]
    return {
        "columns": list(models),
        "rows": rows,
        "notes": ["one seed"],
        "machine": printed["machine"],
    }


KINDS: Mapping[str, Callable[[Json], Json]] = {
    "movielens": movielens,
    "kuairand": kuairand,
    "refresh": refresh,
}


def fingerprint(content: Json) -> str:
    """Of everything but itself, so that no number can be set by hand."""
    rest = {k: v for k, v in content.items() if k != "fingerprint"}
    text = json.dumps(rest, sort_keys=True)
    return hashlib.sha256(text.encode()).hexdigest()[:12]


def rendered(name: str, folder: Path = FOLDER) -> str:
    """The Markdown table of a measurement, and the line below it.

    Raises:
      ValueError: the content is not what its fingerprint is of.
    """
    content = json.loads((folder / f"{name}.json").read_text())
    if fingerprint(content) != content["fingerprint"]:
        raise ValueError(
            f"{name}.json was changed after it was measured; run the "
            "benchmark and `python -m benchmarks.measured` again."
        )
    lines = [
        ["metric", *content["columns"]],
        ["---"] * (1 + len(content["columns"])),
    ]
    for row, values in content["rows"].items():
        digits = 1 if row.endswith("_s") else 3
        shown = (
            f"{value:,}" if isinstance(value, int) else f"{value:.{digits}f}"
            for value in values
        )
        lines.append([f"`{row}`", *shown])
    table = "\n".join(f"| {' | '.join(line)} |" for line in lines)
    notes = "; ".join([*content["notes"], f"run {content['fingerprint']}"])
    notes = textwrap.fill(f"({notes[:1].upper()}{notes[1:]}.)", 80)
    return f"\n{table}\n\n{notes}\n\n"


def fill(page: str, folder: Path = FOLDER) -> str:
    """A page's text with its tables as they were measured."""
    return _BLOCK.sub(
        lambda block: f"{block[1]}{block[2]}{rendered(block[1], folder)}", page
    )


def main(argv: Sequence[str] | None = None) -> None:
    """Keeps a benchmark's figures and writes them into the documents."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("name", choices=KINDS)
    parser.add_argument(
        "printed",
        type=Path,
        nargs="+",
        help="What it printed; may be in parts.",
    )
    args = parser.parse_args(argv)
    printed: Json = {}
    for path in args.printed:
        lines = path.read_text().splitlines()
        last = next(
            (line for line in reversed(lines) if line.startswith("{")), None
        )
        if last is None:
            parser.error(f"{path} has no line with a JSON object.")
        part = json.loads(last)
        # Means over other seeds cannot be joined, nor can one win in silence.
        twice = (part.keys() & printed.keys()) - {"machine"}
        if twice:
            parser.error(
                f"{path} has {min(twice)!r} again; parts must be of different "
                "sections. Run all seeds at once."
            )
        printed |= part
    content = KINDS[args.name](printed)
    content["fingerprint"] = fingerprint(content)
    text = json.dumps(content, indent=1, sort_keys=False)
    (FOLDER / f"{args.name}.json").write_text(text + "\n")
    for path in PAGES:
        path.write_text(fill(path.read_text()))


if __name__ == "__main__":
    main()
