"""The command line: `watchnext <command>`.

Every command is a thin shell round a function of a stage; heavy imports happen
inside the commands, so that `--help` answers at once.
"""

import logging
import os
import sys
from collections.abc import Sequence

import click
import typer

# In the order of `watchnext --help`.
from pipeline.commands import (  # noqa: F401
    data,
    line,
    models,
    reproduce,
    serving,
    tuning,
)
from pipeline.commands.app import app
from schemas.errors import WatchnextError


@app.command()
def doctor() -> None:
    """Say what this machine has: versions, accelerators, runners."""
    from pipeline.doctor import run_doctor

    raise typer.Exit(run_doctor())


def main(argv: Sequence[str] | None = None) -> int:
    """Runs a command; returns the exit code (0, 1 or 2)."""
    # Said before any heavy import; C++ reads it once.
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")
    # Beam logs a worker's error with its stack trace, then raises it: said
    # once, by us, in one line, it is enough.
    logging.getLogger("apache_beam.runners.common").setLevel(logging.CRITICAL)
    try:
        code = app(args=argv, prog_name="watchnext", standalone_mode=False)
        return int(code or 0)
    except click.exceptions.Exit as stop:
        return stop.exit_code
    except click.ClickException as error:
        error.show(sys.stderr)
        return 2
    except (click.Abort, KeyboardInterrupt):
        return _fail(WatchnextError("Interrupted; a second run resumes."))
    except WatchnextError as error:
        return _fail(error)


def _fail(error: WatchnextError) -> int:
    # One line, whatever the message carried.
    print(f"watchnext: {' '.join(str(error).split())}", file=sys.stderr)
    return error.exit_code


if __name__ == "__main__":
    sys.exit(main())
