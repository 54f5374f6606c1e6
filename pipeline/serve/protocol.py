"""The protocol's messages about models, for REST and gRPC alike."""

from tensorflow_serving.apis import (
    get_model_metadata_pb2,
    get_model_status_pb2,
)

from pipeline.serve.served_models import (
    LoadedVersion,
    NotServedError,
    ServedModels,
)

# google.rpc.Code
_FAILED_PRECONDITION = 9


def model_status(
    models: ServedModels, model: str, number: int | None
) -> get_model_status_pb2.GetModelStatusResponse:
    """States of every version seen, or of one.

    Raises:
      NotServedError: no such model or version.
    """
    states = models.states(model)
    if number is not None and number not in states:
        raise NotServedError(f"{model} has no version {number}.")
    response = get_model_status_pb2.GetModelStatusResponse()
    for version, (state, why) in states.items():
        if number in (None, version):
            status = response.model_version_status.add()
            status.version, status.state = version, state.value
            status.status.error_code = _FAILED_PRECONDITION if why else 0
            status.status.error_message = why
    return response


def model_metadata(
    version: LoadedVersion,
) -> get_model_metadata_pb2.GetModelMetadataResponse:
    """Signatures of a version."""
    response = get_model_metadata_pb2.GetModelMetadataResponse()
    response.model_spec.name = version.model
    response.model_spec.version.value = version.number
    signatures = get_model_metadata_pb2.SignatureDefMap()
    for name, definition in version.definitions.items():
        signatures.signature_def[name].CopyFrom(definition)
    response.metadata["signature_def"].Pack(signatures)
    return response
