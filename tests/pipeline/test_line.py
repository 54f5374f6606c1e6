"""The whole line on a small simulated platform, by the command line."""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from pipeline.cli import main
from schemas.artifacts import ArtifactStore
from schemas.events import TIMED_TABLES
from schemas.split import BOUNDS_FILE, SplitBounds

# Everything that is learnt from; the rest is measured on the test.
LEARNT = (
    "vocabularies",
    "transform",
    "retrieval_examples",
    "ranking_examples",
    "retrieval_model",
    "index",
    "candidate_lists",
    "ranking_model",
)


def _files(work: Path, stage: str) -> dict[str, str]:
    """Name -> sha256 of a stage's newest version."""
    newest = ArtifactStore(str(work)).versions(stage)[-1]
    return {n: f["sha256"] for n, f in newest.manifest["files"].items()}


def test_the_work_directory_tells_its_metrics(work: Path) -> None:
    top = json.loads((work / "metrics.json").read_text())
    evaluation = ArtifactStore(str(work)).versions("evaluation")[-1].metrics
    assert evaluation.items() <= top.items()
    for name in (
        "retrieval.hit_rate_at_100",
        "retrieval.hit_rate_at_10_seen_removed",
        "retrieval.mean_average_precision",
        "baselines.popularity.hit_rate_at_100",
        "baselines.recent_popularity.hit_rate_at_100",
        "baselines.co_watch.ndcg_at_10",
        "index.recall_at_100",
        "ranking.auc_click",
        "ranking.weighted_per_user_loss",
        "ranking.watch_time_xauc",
        "ranking.calibration",
        "ranking.auc_per_user_click_low",
        "ranking.watch_time_rmse_s_high",
        "ranking.by_activity.watched_6_to_20.auc_click",
        "ranking.by_duration.1_to_5_minutes.calibration_low",
        "ranking.by_prediction.decile_10.calibration",
        "ranking.by_surface.home.weighted_per_user_loss",
        "ranking.by_video_age.over_30_days.impressions",
        # The simulator shuffles some requests, and logs that it did.
        "ranking.off_policy.clicks_per_request.snips",
        "ranking.off_policy.watch_time_s_per_request.doubly_robust",
        "baselines.popularity.ranking.auc_click",
        "baselines.click_model.ranking.weighted_per_user_loss",
    ):
        assert isinstance(top[name], float), name
    # 400 videos, below 20,000: the index is exact.
    assert top["index.recall_at_100"] == 1.0


def test_a_second_run_builds_nothing(
    work: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    before = {p: p.stat().st_mtime_ns for p in work.rglob("*") if p.is_file()}
    assert main(["run", "--workdir", str(work)]) == 0
    after = {p: p.stat().st_mtime_ns for p in work.rglob("*") if p.is_file()}
    config = work / "serving" / "models.config"
    before.pop(config), after.pop(config)
    assert after == before
    assert "retrieval_model: there already" in capsys.readouterr().out


def test_a_garbled_test_part_changes_nothing_that_is_learnt(
    work: Path, tmp_path: Path
) -> None:
    """Same bytes of everything learnt, other bytes of the test cases."""
    bounds = SplitBounds.read(
        ArtifactStore(str(work)).versions("split")[-1].file(BOUNDS_FILE)
    )
    garbled = tmp_path / "work"
    shutil.copytree(work / "events", garbled / "events")
    shutil.copy(work / "config.yaml", garbled)
    _garble(next((garbled / "events").iterdir()), bounds.valid_end_us)
    for command in ("prepare", "train retrieval", "train ranking", "index"):
        assert main([*command.split(), "--workdir", str(garbled)]) == 0
    for stage in LEARNT:
        assert _files(garbled, stage) == _files(work, stage), stage
    for stage in ("split", "retrieval_holdout", "ranking_holdout"):
        assert _files(garbled, stage) != _files(work, stage), stage


def _garble(events: Path, from_us: int) -> None:
    """Makes every event of the test garbage, keeping only its time."""
    noise = np.random.default_rng(5)
    manifest = json.loads((events / "manifest.json").read_text())
    for table in TIMED_TABLES:
        for path in events.glob(f"{table}-*.parquet"):
            rows = pq.read_table(path)
            late = rows["event_time_us"].to_numpy() >= from_us
            for i, field in enumerate(rows.schema):
                if field.name in ("event_time_us", "user_id"):
                    continue
                values = np.array(rows[field.name].to_pylist(), dtype=object)
                values[late] = _garbage(field.type, int(late.sum()), noise)
                column = pa.array(values.tolist(), field.type)
                rows = rows.set_column(i, field, column)
            pq.write_table(rows, path)
            manifest["files"][path.name] = _described(path)
    (events / "manifest.json").write_text(json.dumps(manifest))


def _garbage(kind: pa.DataType, n: int, noise: np.random.Generator) -> list:
    if pa.types.is_string(kind):
        return [f"garbage{i}" for i in noise.integers(0, 9, n)]
    if pa.types.is_boolean(kind):
        return (noise.random(n) < 0.9).tolist()
    if pa.types.is_integer(kind):
        return noise.integers(1, 99, n).tolist()
    return noise.random(n).tolist()


def _described(path: Path) -> dict[str, object]:
    import hashlib

    content = path.read_bytes()
    return {
        "sha256": hashlib.sha256(content).hexdigest(),
        "bytes": len(content),
    }


@pytest.mark.parametrize("damage", ["truncated", "flipped"])
def test_a_corrupt_shard_is_named(
    work: Path,
    tmp_path: Path,
    damage: str,
    capsys: pytest.CaptureFixture[str],
) -> None:
    broken = tmp_path / "work"
    shutil.copytree(work, broken)
    shard = next(broken.glob("retrieval_examples/*/train-00001-*.tfrecord"))
    content = bytearray(shard.read_bytes())
    if damage == "truncated":
        content = content[: len(content) // 2]
    else:
        content[100] ^= 1
    shard.write_bytes(content)
    assert main(["train", "retrieval", "--workdir", str(broken)]) == 1
    said = capsys.readouterr().err.strip().splitlines()[-1]
    assert said.startswith(f"watchnext: {shard} is corrupt")


def test_recommend_prints_the_list_of_the_saved_models(
    work: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """A process that knows only TensorFlow answers the same request."""
    watches = next(work.glob("split/*/test/watches-*.parquet"))
    user = pq.read_table(watches)["user_id"][0].as_py()
    command = ["recommend", "--workdir", str(work), "--user", user]
    assert main(command) == 0
    printed = capsys.readouterr().out
    request = _request_of(work, user)
    np.savez(tmp_path / "request.npz", **request)
    script = tmp_path / "client.py"
    script.write_text(_CLIENT)
    answer = subprocess.run(
        [sys.executable, "-I", str(script), str(work / "serving")],
        cwd=tmp_path,
        env={"PATH": os.environ["PATH"], "TF_CPP_MIN_LOG_LEVEL": "2"},
        capture_output=True,
        text=True,
        check=True,
    )
    best = json.loads(answer.stdout.splitlines()[-1])
    assert len(best) == 5
    for _, seconds in best:
        assert f"{seconds:.1f} s" in printed


_CLIENT = """
import json, sys
import numpy as np
import tensorflow as tf

serving = sys.argv[1]
request = dict(np.load("request.npz", allow_pickle=True))

def call(model, inputs):
    loaded = tf.saved_model.load(f"{serving}/{model}/1")
    signature = loaded.signatures["serving_default"]
    wanted = signature.structured_input_signature[1]
    return signature(**{
        name: tf.constant(inputs[name], spec.dtype)
        for name, spec in wanted.items()
    })

answer = call("recommender", request)
ids = answer["video_ids"].numpy()[0]
seconds = answer["expected_watch_time_s"].numpy()[0]
assert not {"pipeline", "models", "schemas", "beam_jobs"} & set(sys.modules)
print(json.dumps([[v.decode(), float(s)] for v, s in zip(ids, seconds)]))
"""


def _request_of(work: Path, user: str) -> dict[str, np.ndarray]:
    from pipeline.config import load_config
    from pipeline.model_stages import ModelStages
    from pipeline.recommend import request_of_user
    from pipeline.run import Run

    config = load_config(str(work / "config.yaml"), [])
    stages = ModelStages(Run(config, ArtifactStore(str(work))))
    data = stages.data
    files = {t: data.events.files(f"{t}-") for t in data.schema.columns}
    return request_of_user(user, files, data.schema, stages.raw_inputs)
