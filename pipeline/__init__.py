"""Run it: config, command line, distribution, stages and report."""
