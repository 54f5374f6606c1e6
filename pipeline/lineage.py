"""Whether the parts of a recommender belong together.

Vocabularies, transform graph, models and index may be good each and wrong
together: an id means another video, a number another feature. Each stage's
manifest names the fingerprints of what it was made from, so that whoever
copies folders between work directories is told which pair does not fit.
"""

from collections.abc import Mapping

from schemas.artifacts import Artifact
from schemas.errors import ArtifactError

_EXAMPLES = ("train-", "valid-")
# (stage, its input) -> which of the input's files it reads; () is all.
_READS: dict[tuple[str, str], tuple[str, ...]] = {
    ("transform", "vocabularies"): (),
    ("retrieval_examples", "vocabularies"): (),
    ("retrieval_examples", "transform"): (),
    ("ranking_examples", "vocabularies"): (),
    ("ranking_examples", "transform"): (),
    ("retrieval_model", "vocabularies"): (),
    ("retrieval_model", "retrieval_examples"): _EXAMPLES,
    ("ranking_model", "vocabularies"): (),
    ("ranking_model", "ranking_examples"): _EXAMPLES,
    ("candidate_lists", "vocabularies"): (),
    ("index", "retrieval_model"): (),
    ("index", "retrieval_examples"): ("valid-",),
    ("export", "transform"): (),
    ("export", "retrieval_model"): (),
    ("export", "ranking_model"): (),
    ("export", "index"): (),
    ("export", "candidate_lists"): (),
}


def mismatches(parts: Mapping[str, Artifact]) -> list[str]:
    """Names each pair of which one was not made from the other.

    Args:
      parts: stage -> the version to be used; those of `_READS` as far as the
        log has them.

    Returns:
      A phrase for each pair, none if all belong together.
    """
    wrong = []
    for (stage, source), prefixes in _READS.items():
        if stage not in parts or source not in parts:
            continue
        made_from = parts[stage].manifest["inputs"].get(source, "nothing")
        there = parts[source].fingerprint(*prefixes)
        if made_from != there:
            wrong.append(
                f"{parts[stage].path} was made from {source} {made_from[:12]}, "
                f"but {parts[source].path} is {there[:12]}"
            )
    return wrong


def refuse_strangers(parts: Mapping[str, Artifact]) -> None:
    """Checks that parts belong together.

    Raises:
      ArtifactError: naming each pair that does not.
    """
    wrong = mismatches(parts)
    if wrong:
        raise ArtifactError(
            f"These are of different runs: {'; '.join(wrong)}. Take all "
            "folders from one work directory, or run `watchnext run` to make "
            "anew what does not fit."
        )
