import posixpath
from pathlib import Path

import pytest

from models.keras_setup import tf
from pipeline import publishing
from pipeline.publishing import publish
from schemas.artifacts import Artifact, ArtifactStore, stage_key


def _export(work: Path, text: str) -> Artifact:
    store, inputs = ArtifactStore(str(work)), {"model": text}
    with store.write("export", {}, 1, inputs) as writer:
        for model in ("retrieval", "ranking"):
            folder = Path(writer.path, model, "1")
            (folder / "variables").mkdir(parents=True)
            (folder / "saved_model.pb").write_text(f"{model} {text}")
            (folder / "variables" / "data").write_text(text * 2)
    found = store.find("export", stage_key("export", {}, 1, inputs))
    assert found is not None
    return found


def test_each_export_becomes_the_next_version_once(tmp_path: Path) -> None:
    first, second = _export(tmp_path, "old"), _export(tmp_path, "new")
    assert publish(first, str(tmp_path)) == {
        "retrieval": f"{tmp_path}/serving/retrieval/1",
        "ranking": f"{tmp_path}/serving/ranking/1",
    }
    publish(first, str(tmp_path))
    folders = publish(second, str(tmp_path))
    assert folders["ranking"] == f"{tmp_path}/serving/ranking/2"
    serving = tmp_path / "serving"
    versions = sorted(p.name for p in (serving / "ranking").iterdir())
    assert versions == ["1", "2"]
    # Back to the first export: a server takes the highest number.
    assert publish(first, str(tmp_path)) == {
        "retrieval": f"{tmp_path}/serving/retrieval/3",
        "ranking": f"{tmp_path}/serving/ranking/3",
    }
    for version, text in (("1", "old"), ("2", "new")):
        folder = serving / "retrieval" / version
        assert (folder / "saved_model.pb").read_text() == f"retrieval {text}"
        assert (folder / "variables" / "data").read_text() == text * 2


def test_a_killed_copy_is_no_version(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    export = _export(tmp_path, "x")

    def killed(*_: object) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(Path, "rename", killed)
        with pytest.raises(KeyboardInterrupt):
            publish(export, str(tmp_path))
    half = tmp_path / "serving" / "ranking"
    assert not [p for p in half.iterdir() if p.name.isdecimal()]
    (half / "1.partial" / "stray").write_text("of the killed copy")
    publish(export, str(tmp_path))
    assert sorted(p.name for p in half.iterdir()) == ["1"]
    assert not (half / "1" / "stray").exists()


def test_in_an_object_store_the_model_comes_last(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """`ram://` has no atomic rename of folders either."""
    export, workdir = _export(tmp_path, "x"), f"ram://{tmp_path.name}"
    # Beam, which joins our paths, has not heard of `ram://`.
    monkeypatch.setattr(publishing, "join", posixpath.join)
    gfile, copied = tf.io.gfile, []
    copy = gfile.copy

    def recorded(source: str, target: str) -> None:
        if len(copied) == 3:
            raise KeyboardInterrupt
        copied.append(target.removeprefix(f"{workdir}/serving/ranking/"))
        copy(source, target)

    def killed(source: str, target: str) -> None:
        if target.endswith("saved_model.pb"):
            raise KeyboardInterrupt
        recorded(source, target)

    with monkeypatch.context() as patch:
        patch.setattr(gfile, "copy", killed)
        with pytest.raises(KeyboardInterrupt):
            publish(export, workdir)
        assert copied == ["1/variables/data"]
        assert gfile.exists(f"{workdir}/serving/ranking/1/variables/data")
        # The key is there, and yet it is no version to be content with.
        patch.setattr(gfile, "copy", recorded)
        with pytest.raises(KeyboardInterrupt):  # In the second model.
            publish(export, workdir)
    assert copied[1:] == ["2/variables/data", "2/saved_model.pb"]
    assert not gfile.exists(f"{workdir}/serving/ranking/1/saved_model.pb")
    folders = publish(export, workdir)
    assert folders == {
        "ranking": f"{workdir}/serving/ranking/2",
        "retrieval": f"{workdir}/serving/retrieval/2",
    }
    for folder in folders.values():
        assert gfile.exists(f"{folder}/saved_model.pb")


def test_the_server_is_told_of_every_model(tmp_path: Path) -> None:
    from google.protobuf import text_format
    from tensorflow_serving.config import model_server_config_pb2

    publish(_export(tmp_path, "x"), str(tmp_path))
    config = text_format.Parse(
        (tmp_path / "serving" / "models.config").read_text(),
        model_server_config_pb2.ModelServerConfig(),
    )
    assert [
        (m.name, m.base_path, m.model_platform)
        for m in config.model_config_list.config
    ] == [
        ("ranking", "/models/ranking", "tensorflow"),
        ("retrieval", "/models/retrieval", "tensorflow"),
    ]
