"""Five parts of five runs: whatever is swapped in is refused.

The artifacts are small files, with the inputs that the stages name; what the
command line says of swapped folders of real runs is in `test_push.py`.
"""

import itertools
from pathlib import Path

import pytest

from pipeline.lineage import mismatches, refuse_strangers
from schemas.artifacts import Artifact, ArtifactStore, stage_key
from schemas.errors import ArtifactError

SWAPPED = (
    "vocabularies",
    "transform",
    "retrieval_model",
    "ranking_model",
    "index",
)
RUNS = range(5)
PARTS = ("train-", "valid-")


def _write(
    store: ArtifactStore, stage: str, run: int, inputs: dict[str, str]
) -> Artifact:
    with store.write(stage, {}, 1, inputs) as writer:
        for name in (*PARTS, "statistics"):
            Path(writer.path, f"{name}0").write_text(f"{stage} {run}")
    found = store.find(stage, stage_key(stage, {}, 1, inputs))
    assert found is not None
    return found


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> list[dict[str, Artifact]]:
    """Of each run all parts, as `ModelStages` chains them."""
    found = []
    for run in RUNS:
        store = ArtifactStore(str(tmp_path_factory.mktemp("run")))
        parts: dict[str, Artifact] = {}

        def add(
            stage: str,
            inputs: dict[str, str],
            parts: dict[str, Artifact] = parts,
            store: ArtifactStore = store,
            run: int = run,
        ) -> None:
            parts[stage] = _write(store, stage, run, inputs)

        add("vocabularies", {"split": f"split {run}"})
        terms = {"vocabularies": parts["vocabularies"].fingerprint()}
        add("transform", terms)
        data = terms | {"transform": parts["transform"].fingerprint()}
        for model in ("retrieval", "ranking"):
            examples = f"{model}_examples"
            add(examples, data)
            learnt = {examples: parts[examples].fingerprint(*PARTS)}
            add(f"{model}_model", terms | learnt)
        add(
            "index",
            {
                "retrieval_model": parts["retrieval_model"].fingerprint(),
                "retrieval_examples": parts["retrieval_examples"].fingerprint(
                    "valid-"
                ),
            },
        )
        found.append(parts)
    return found


def test_every_swapped_part_is_refused_and_no_right_one(
    runs: list[dict[str, Artifact]],
) -> None:
    """5 parts x 5 runs, in each of the 5 runs: 25 right, 100 wrong."""
    right = wrong = 0
    for base, part, source in itertools.product(RUNS, SWAPPED, RUNS):
        parts = {**runs[base], part: runs[source][part]}
        if base == source:
            refuse_strangers(parts)
            right += 1
            continue
        with pytest.raises(ArtifactError) as refused:
            refuse_strangers(parts)
        # What does not fit is named, with the folder it is in.
        assert runs[source][part].path in str(refused.value)
        wrong += 1
    assert (right, wrong) == (25, 100)


def test_an_export_of_other_parts_is_a_stranger(
    runs: list[dict[str, Artifact]], tmp_path: Path
) -> None:
    ours, theirs = runs[0], runs[1]
    exported = ("retrieval_model", "ranking_model", "index", "transform")
    inputs = {name: ours[name].fingerprint() for name in exported}
    export = _write(ArtifactStore(str(tmp_path)), "export", 0, inputs)
    assert mismatches({**ours, "export": export}) == []
    # With all of its parts exchanged for those of another run, each is named.
    assert len(mismatches({**theirs, "export": export})) == len(exported)


def test_a_log_without_impressions_has_no_ranking(
    runs: list[dict[str, Artifact]],
) -> None:
    parts = {n: p for n, p in runs[0].items() if "ranking" not in n}
    refuse_strangers(parts)
    with pytest.raises(ArtifactError, match="different runs"):
        refuse_strangers({**parts, "index": runs[1]["index"]})


def test_an_index_belongs_to_one_model_of_one_run_retrained(
    runs: list[dict[str, Artifact]], tmp_path: Path
) -> None:
    """5 models of the same examples, 5 indexes: 5 pairs right, 20 wrong."""
    shared, models, indexes = runs[0], [], []
    examples = shared["retrieval_examples"]
    for run in RUNS:
        store = ArtifactStore(str(tmp_path / str(run)))
        inputs = {
            "vocabularies": shared["vocabularies"].fingerprint(),
            "retrieval_examples": examples.fingerprint(*PARTS),
        }
        models.append(_write(store, "retrieval_model", 10 + run, inputs))
        inputs = {
            "retrieval_model": models[-1].fingerprint(),
            "retrieval_examples": examples.fingerprint("valid-"),
        }
        indexes.append(_write(store, "index", run, inputs))
    right = [
        (m, i)
        for m, i in itertools.product(RUNS, RUNS)
        if not mismatches(
            {**shared, "retrieval_model": models[m], "index": indexes[i]}
        )
    ]
    assert right == [(n, n) for n in RUNS]
