from pathlib import Path

import pytest

from pipeline.config import load_config, load_mapping_file
from pipeline.shipped import shipped_names
from schemas.errors import UsageError


def test_overrides_win_over_the_file_and_are_typed(tmp_path: Path) -> None:
    path = tmp_path / "run.yaml"
    path.write_text("seed: 5\nretrieval: {epochs: 9, dropout: 0.1}\n")
    config = load_config(
        str(path),
        ["retrieval.epochs=3", "retrieval.recency_bags=[50, 1]", "name=x"],
    )
    assert config.seed == 5
    assert config.retrieval.epochs == 3
    assert config.retrieval.dropout == 0.1
    assert config.retrieval.recency_bags == (50, 1)
    assert config.name == "x"


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("retrieval.epoch=3", r"'retrieval\.epoch'.*'retrieval\.epochs'"),
        ("retreival.epochs=3", r"'retreival'.*'retrieval'"),
        ("retrieval.epochs=0", r"retrieval\.epochs: .*greater than.*got 0"),
        ("retrieval.epochs=many", r"retrieval\.epochs: .*integer.*'many'"),
        ("simulator.num_user=3", r"did you mean 'simulator\.num_users'"),
        ("epochs", r"section\.field=value, got 'epochs'"),
        ("seed.a=1", "'seed' is a value, not a section"),
        ("retrieval.recency_bags=[]", "would not see the watch history"),
        (
            "retrieval={more_towers: [{}], sequence: {}}",
            r"`more_towers` needs `sequence\.place: beside`",
        ),
        ("retrieval.sequence={heads: 7}", r"multiple of `sequence\.heads`"),
    ],
)
def test_a_wrong_key_or_value_gets_one_line(
    tmp_path: Path, override: str, message: str
) -> None:
    path = tmp_path / "run.yaml"
    path.write_text("seed: 5\n")
    with pytest.raises(UsageError, match=message) as caught:
        load_config(str(path), [override])
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("a: [1", "not valid YAML"),
        ("- 1\n- 2\n", "must hold sections.*list"),
    ],
)
def test_a_file_that_is_no_configuration(tmp_path, text, message) -> None:
    path = tmp_path / "run.yaml"
    path.write_text(text)
    with pytest.raises(UsageError, match=message):
        load_config(str(path), [])


def test_a_missing_file_names_the_shipped_ones() -> None:
    with pytest.raises(UsageError, match="demo"):
        load_config("no-such", [])


@pytest.mark.parametrize("name", [n for n in shipped_names() if "/" not in n])
def test_every_shipped_configuration_is_valid(name: str) -> None:
    assert load_config(name, []).name == name


def test_a_mapping_finds_its_root_by_environment_or_option(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "m.yaml"
    path.write_text("root: ${LOGS_OF_TEST}/x\nwatches: {}\n")
    monkeypatch.delenv("LOGS_OF_TEST", raising=False)
    with pytest.raises(UsageError, match=r"LOGS_OF_TEST.*not set.*--input"):
        load_mapping_file(str(path), None)
    monkeypatch.setenv("LOGS_OF_TEST", "/data")
    assert load_mapping_file(str(path), None).root == "/data/x"
    found = load_mapping_file(str(path), "/other")
    assert found.root == "/other"
    assert found.content == {"watches": {}}
