"""The stage of `export --onnx`: both networks as ONNX, and drawn."""

from models.ranking import RankingModel
from models.retrieval import RetrievalModel
from pipeline.model_stages import ModelStages
from schemas.artifacts import Artifact, ArtifactWriter

QUERY_TOWER, RANKING = "query_tower", "ranking"


def write_onnx(stages: ModelStages) -> Artifact:
    """Writes `<network>.onnx`, `.svg` and `.png`, or finds them."""
    models = {"retrieval_model": stages.retrieval_model()}
    if stages.has_ranking:
        models["ranking_model"] = stages.ranking_model()

    def write(writer: ArtifactWriter) -> None:
        from models import onnx_graphs, pictures

        def drawn(name: str) -> list[str]:
            return [writer.file(f"{name}.{kind}") for kind in ("svg", "png")]

        retrieval = RetrievalModel.load(models["retrieval_model"].path)
        path = writer.file(f"{QUERY_TOWER}.onnx")
        onnx_graphs.write_query_tower(retrieval, path)
        pictures.draw_retrieval(retrieval, drawn(QUERY_TOWER))
        if stages.has_ranking:
            ranking = RankingModel.load(models["ranking_model"].path)
            path = writer.file(f"{RANKING}.onnx")
            onnx_graphs.write_ranking(ranking, path)
            pictures.draw_ranking(ranking, drawn(RANKING))

    inputs = {name: model.fingerprint() for name, model in models.items()}
    return stages.run.stage("onnx", {}, inputs, write)
