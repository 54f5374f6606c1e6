"""A small work directory with every stage, made once for several files."""

from pathlib import Path

import pytest

from pipeline.cli import main

CONFIG = """
name: small
simulator: {num_users: 250, num_videos: 400, num_channels: 40, num_topics: 8,
            num_days: 10, requests_per_user_day: 0.4}
beam: {num_shards: 3}
retrieval_examples: {history_length: 10, search_tokens: 12}
retrieval: {embedding_dim: 8, token_dim: 4, hidden_units: [16],
            num_negatives: 50, batch_size: 32, epochs: 2}
ranking: {hidden_units: [16], batch_size: 32, epochs: 1}
serving:
  candidates: 30
  top_k: 5
  max_per_channel: 2
  generators:
    - {name: co_watch, candidates: 6, logged_as: related}
    - {name: topics, candidates: 4, recent_days: 3}
    - {name: popular, candidates: 4, logged_as: popular, recent_days: 2}
# One epoch on 800 requests is not calibrated.
publishing: {min_calibration: 0.5, max_calibration: 2.0}
"""


@pytest.fixture(scope="session")
def work(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A work directory with every stage; tests must not write to it."""
    folder = tmp_path_factory.mktemp("line")
    (folder / "small.yaml").write_text(CONFIG)
    config = ["--config", str(folder / "small.yaml")]
    assert main(["run", *config, "--workdir", str(folder / "work")]) == 0
    return folder / "work"
