"""Bring simulated and outside logs into the five event tables."""
