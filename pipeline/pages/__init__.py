"""Pages that stand alone: plots, a base template, and how one is written."""
