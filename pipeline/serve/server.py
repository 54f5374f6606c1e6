"""`watchnext serve`: both APIs and the page, until SIGTERM or Ctrl-C.

The loopback interface only, plain text, no authentication: a tool to develop
with. TensorFlow Serving is the server for everybody else.
"""

import signal
import socket
import threading

import uvicorn
from starlette.applications import Starlette
from starlette.middleware import Middleware
from starlette.middleware.trustedhost import TrustedHostMiddleware

from pipeline.console import say
from pipeline.model_stages import ModelStages
from pipeline.publishing import SERVING_FOLDER
from pipeline.run import Run
from pipeline.serve import grpc_services, page_api, rest
from pipeline.serve.log import Log
from pipeline.serve.served_models import ServedModels
from schemas.artifacts import join
from schemas.errors import UsageError

HOST = "127.0.0.1"
NOTICE = "This is a development server, not TensorFlow Serving."
# A page of another site whose name is pointed here must not read the log.
_HOSTS = [HOST, "localhost"]
_POLL_S = 1.0
_END_S = 10
# Clients keep connections; one closed while a request is on its way fails it.
_KEEP_ALIVE_S = 75


def serve(run: Run, port: int, grpc_port: int) -> None:
    """Serves the published models of a work directory.

    Args:
      run: whose work directory.
      port: of REST and the page; 0 is any free one.
      grpc_port: of gRPC; likewise.

    Raises:
      ArtifactError: nothing is published, or it does not load.
      UsageError: a port is taken.
    """
    stopped = threading.Event()
    # Before anything is loaded: that takes seconds, a taken port none.
    listener = _listen(port)
    models = ServedModels(join(run.workdir, SERVING_FOLDER), say)
    http = _http_server(models, _log(run))
    grpc_server, grpc_port = grpc_services.start(models, f"{HOST}:{grpc_port}")
    # Not before: while models load, either signal ends it at once.
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda *_: stopped.set())
    watcher = threading.Thread(
        target=models.watch, args=(_POLL_S, stopped), daemon=True
    )
    watcher.start()
    answering = threading.Thread(
        target=_answer, args=(http, listener, stopped), daemon=True
    )
    answering.start()
    say(NOTICE)
    say(f"page and REST: http://{HOST}:{listener.getsockname()[1]}/")
    say(f"gRPC:          {HOST}:{grpc_port}")
    stopped.wait()
    say("stopping")
    http.should_exit = True
    answering.join()
    grpc_server.stop(_END_S).wait()


def _log(run: Run) -> Log:
    stages = ModelStages(run)
    data = stages.data
    files = {t: data.events.files(f"{t}-") for t in data.schema.columns}
    return Log(files, data.schema, stages.raw_inputs)


def _http_server(models: ServedModels, log: Log) -> uvicorn.Server:
    app = Starlette(
        routes=[*rest.routes(models), *page_api.routes(models, log)],
        exception_handlers=rest.error_handlers(),
        middleware=[Middleware(TrustedHostMiddleware, allowed_hosts=_HOSTS)],
    )
    return uvicorn.Server(
        uvicorn.Config(
            app,
            lifespan="off",
            log_level="warning",
            access_log=False,
            server_header=False,
            timeout_keep_alive=_KEEP_ALIVE_S,
            timeout_graceful_shutdown=_END_S,
        )
    )


def _listen(port: int) -> socket.socket:
    listener = socket.socket()
    # Connections that a server before this one closed do not hold the port.
    listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    try:
        listener.bind((HOST, port))
        # At once: two that bind one port both succeed until one listens.
        listener.listen()
    except OSError as error:
        listener.close()
        raise UsageError(
            f"{HOST}:{port} is taken ({error.strerror}). Choose another --port."
        ) from error
    return listener


def _answer(
    http: uvicorn.Server, listener: socket.socket, stopped: threading.Event
) -> None:
    # Outside the main thread uvicorn leaves the signals alone.
    try:
        http.run(sockets=[listener])
    finally:
        stopped.set()
