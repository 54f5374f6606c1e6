import json
from pathlib import Path

import pytest

from pipeline.run import (
    COMMANDS,
    DAILY,
    LEARNT,
    PREPARED,
    Run,
    saved_config,
)
from schemas.artifacts import ArtifactStore, ArtifactWriter
from schemas.config import Config, IndexConfig
from schemas.errors import UsageError


@pytest.fixture
def run(tmp_path: Path) -> Run:
    store = ArtifactStore(str(tmp_path / "work"))
    return Run(Config(), store, builds=frozenset({"index"}))


def _writes(text: str):
    def write(writer: ArtifactWriter) -> None:
        Path(writer.file("a.txt")).write_text(text)
        writer.metrics["index.recall_at_100"] = float(len(text))

    return write


def _never(writer: ArtifactWriter) -> None:
    raise AssertionError("built again")


def test_a_stage_is_built_once_for_what_it_follows_from(run: Run) -> None:
    sections, inputs = {"index": IndexConfig()}, {"model": "abc"}
    built = run.stage("index", sections, inputs, _writes("x"))
    assert run.stage("index", sections, inputs, _never).path == built.path
    # A command that does not build the stage finds it as well.
    other = run.building("export")
    assert other.stage("index", sections, inputs, _never).path == built.path
    with pytest.raises(AssertionError, match="built again"):
        run.stage("index", sections, {"model": "abd"}, _never)
    changed = {"index": IndexConfig(min_recall=0.5)}
    with pytest.raises(AssertionError, match="built again"):
        run.stage("index", changed, inputs, _never)


def test_a_command_builds_its_own_stages_only(run: Run) -> None:
    other = run.building("export")
    with pytest.raises(UsageError, match=r"no completed 'index'; run") as e:
        other.stage("index", {}, {}, _never)
    assert f"`watchnext index --workdir {run.workdir}`" in str(e.value)
    run.stage("index", {}, {"model": "old"}, _writes("x"))
    with pytest.raises(UsageError, match=r"this configuration .*\(1 for"):
        other.stage("index", {}, {"model": "new"}, _never)


def test_the_newest_version_that_fits_has_these_inputs_and_maybe_more(
    run: Run,
) -> None:
    config: dict = {"index": IndexConfig()}
    old = run.stage("index", config, {"model": "a"}, _writes("x"))
    assert run.newest("index", config, {"model": "a"}).path == old.path
    more = {"model": "a", "earlier": "c"}
    new = run.stage("index", config, more, _writes("y"))
    run.stage("index", config, {"model": "b"}, _writes("z"))
    assert run.newest("index", config, {"model": "a"}).path == new.path
    assert run.newest("index", config, more).path == new.path
    with pytest.raises(UsageError, match=r"run `watchnext index .*` first"):
        run.newest("index", config, {"model": "a", "earlier": "d"})
    other = {"index": IndexConfig(min_recall=0.5)}
    with pytest.raises(UsageError, match=r"\(3 for another one\)"):
        run.newest("index", other, {"model": "a"})


def test_metrics_of_all_stages_end_in_one_file(run: Run) -> None:
    run.stage("index", {}, {"model": "1"}, _writes("x"))
    run.stage("index", {}, {"model": "2"}, _writes("xyz"))
    path = Path(run.workdir, "metrics.json")
    assert json.loads(path.read_text()) == {"index.recall_at_100": 3.0}


def test_every_counter_of_a_stage_is_a_metric(run: Run) -> None:
    def write(counts: dict[str, int]):
        def fill(writer: ArtifactWriter) -> None:
            Path(writer.file("a.txt")).write_text("x")
            writer.counts |= counts

        return fill

    events = run.building("events", "split")
    bad = {"watches.bad": 1, "watches.bad.user_id is empty": 1}
    built = events.stage("events", {}, {"logs": "1"}, write(bad))
    capped = {"watches_over_user_cap": 12_345, "watches_capped_users": 0}
    events.stage("split", {}, {}, write(capped))
    path = Path(run.workdir, "metrics.json")
    assert json.loads(path.read_text()) == {
        "events.watches.bad": 1.0,
        "events.watches.bad.user_id is empty": 1.0,
        "split.watches_over_user_cap": 12_345.0,
        "split.watches_capped_users": 0.0,
    }
    assert built.metrics["events.watches.bad"] == 1.0
    # The manifest keeps whole numbers, without the stage's name.
    assert built.counts == bad
    # A newer version takes the place of all that the older one said.
    events.stage("events", {}, {"logs": "2"}, write({"watches.bad": 0}))
    merged = json.loads(path.read_text())
    assert {k: v for k, v in merged.items() if k.startswith("events.")} == {
        "events.watches.bad": 0.0
    }
    assert merged["split.watches_over_user_cap"] == 12_345.0


def test_a_work_directory_remembers_its_configuration(run: Run) -> None:
    assert saved_config(run.workdir) is None
    run.stage("index", {}, {}, _writes("x"))
    path = saved_config(run.workdir)
    assert path is not None
    from pipeline.config import load_config

    assert load_config(path, []) == run.config


def test_every_stage_is_made_by_one_command() -> None:
    daily = {*DAILY, "recent_examples"}
    others = {"events", "recommendations"}
    assert {*others, *PREPARED, *daily, *LEARNT} == set(COMMANDS)
    assert LEARNT[0] == "retrieval_model"
    assert LEARNT[-1] == "evaluation"
