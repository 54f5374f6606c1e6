"""The picture of the README says what an evaluation measured."""

import re
from pathlib import Path
from xml.etree import ElementTree

import pytest

from benchmarks.demo_plot import bars, main
from schemas.artifacts import ArtifactStore
from tests.documents.markdown import CHECKOUT

METRICS = {
    "retrieval.hit_rate_at_100": 0.41234,
    "baselines.co_watch.hit_rate_at_100": 0.3,
    "baselines.popularity.hit_rate_at_100": 0.0567,
    "ranking.weighted_per_user_loss": 0.2061,
    "ranking.weighted_per_user_loss_low": 0.19,
    "ranking.weighted_per_user_loss_high": 0.23,
    "baselines.popularity.ranking.weighted_per_user_loss": 0.45,
}


def evaluated(folder: Path) -> str:
    """A work directory with an evaluation; returns its key."""
    store = ArtifactStore(str(folder))
    with store.write("evaluation", {}, 1, {}) as writer:
        writer.metrics.update(METRICS)
    return store.versions("evaluation")[-1].key


def words(path: Path) -> list[str]:
    """All texts of an SVG file."""
    return [
        "".join(element.itertext()).strip()
        for element in ElementTree.parse(path).iter()
        if element.tag.endswith("}text")
    ]


def test_it_has_what_was_measured_and_nothing_else(tmp_path: Path) -> None:
    key = evaluated(tmp_path / "work")
    for name in ("one.svg", "two.svg"):
        command = ["--workdir", str(tmp_path / "work")]
        main([*command, "--output", str(tmp_path / name)])
    one, two = tmp_path / "one.svg", tmp_path / "two.svg"
    assert one.read_bytes() == two.read_bytes()
    said = words(one)
    for number in ("0.412", "0.300", "0.057", "0.206", "0.450"):
        assert number in said
    assert {"watchnext", "co-watch", "popularity"} <= set(said)
    assert not {"EASE", "implicit ALS", "click model"} & set(said)
    assert any(key[:12] in text for text in said)


def test_intervals_are_the_metrics_own() -> None:
    found = bars(
        METRICS, {"ranking": "a", "absent": "b"}, "weighted_per_user_loss"
    )
    assert found == [("a", 0.2061, (0.19, 0.23))]


def test_without_an_evaluation_it_says_what_to_run(tmp_path: Path) -> None:
    with pytest.raises(SystemExit, match="watchnext evaluate"):
        main(["--workdir", str(tmp_path), "--output", str(tmp_path / "x.svg")])


def test_the_front_page_s_picture_agrees_with_the_printed_demo() -> None:
    said = words(CHECKOUT / "docs" / "demo.svg")
    printed = (CHECKOUT / "docs" / "demo.md").read_text()
    (row,) = re.findall(r"│ hit_rate_at_100 +│([^\n]*)│", printed)
    ours, _, co_watch, ease, als, popularity, _ = row.split("│")
    for number in (ours, co_watch, ease, als, popularity):
        assert f"{float(number):.3f}" in said
