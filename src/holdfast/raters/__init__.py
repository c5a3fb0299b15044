"""Judges, and what their ratings measure."""
