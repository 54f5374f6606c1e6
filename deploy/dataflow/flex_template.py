"""Entry point of the flex template: one job whose only step is the driver.

A flex template launches exactly one job, and the program that the launcher
runs has to end once the job's graph is built. `watchnext prepare` is several
jobs, each of which reads what the one before has written. So the template's
job has one step on one worker, which runs `watchnext prepare` and waits; the
stages run as jobs of their own, with the same project, region, image and
service account, or inside that worker (`--stages_runner=FnApiRunner`).

A worker that is lost is replaced and begins again: stages that are complete
in the work directory are found there, not built a second time.
"""

import argparse
import sys
from collections.abc import Sequence

import apache_beam as beam
from apache_beam.options.pipeline_options import PipelineOptions

from beam_jobs.runners import pipeline_options, runner_name

# Options of this job that the stages' jobs need as well.
_INHERITED = (
    "project",
    "region",
    "temp_location",
    "staging_location",
    "service_account_email",
    "network",
    "subnetwork",
    "sdk_container_image",
)


def parser() -> argparse.ArgumentParser:
    """The template's own parameters; all other flags are Beam's."""
    arguments = argparse.ArgumentParser(description=__doc__, allow_abbrev=False)
    arguments.add_argument("--workdir", required=True)
    arguments.add_argument("--config")
    arguments.add_argument("--set", action="append", default=[])
    arguments.add_argument("--stages_runner", default="DataflowRunner")
    arguments.add_argument("--stages_flags", default="")
    return arguments


def prepare_command(argv: Sequence[str]) -> tuple[list[str], PipelineOptions]:
    """The command that the worker runs, and the options of the job itself.

    Args:
      argv: the launcher's flags, the template's parameters among them.
    """
    ours, flags = parser().parse_known_args(list(argv))
    options = pipeline_options(flags)
    command = ["prepare", "--workdir", ours.workdir]
    if ours.config:
        command += ["--config", ours.config]
    for assignment in ours.set:
        command += ["--set", assignment]
    command.append(f"--runner={ours.stages_runner}")
    if ours.stages_runner == "DataflowRunner":
        given = options.get_all_options(drop_default=True)
        command += [
            f"--{name}={given[name]}" for name in _INHERITED if given.get(name)
        ]
    # Last, so that it overrides what is inherited.
    return command + ours.stages_flags.split(), options


def run_command(command: Sequence[str]) -> None:
    """Runs the command line in this worker.

    Raises:
      RuntimeError: it failed; the job then fails and says why in its log.
    """
    from pipeline.cli import main as watchnext

    code = watchnext(command)
    if code:
        raise RuntimeError(f"watchnext {' '.join(command)} ended with {code}.")


def main(argv: Sequence[str]) -> None:
    """Builds and launches the job; does not wait for it."""
    command, options = prepare_command(argv)
    pipeline = beam.Pipeline(options=options)
    _ = (
        pipeline
        | "Command" >> beam.Create([command], reshuffle=False)
        | "Prepare" >> beam.Map(run_command)
    )
    print(f"launching on {runner_name(options)}: {' '.join(command)}")
    pipeline.run()


if __name__ == "__main__":
    main(sys.argv[1:])
