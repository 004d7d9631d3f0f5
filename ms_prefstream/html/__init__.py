"""Reports as one HTML file: what `inspect` and `stats` found, with a page of samples; needs no network."""

SAMPLES = 2000
"""Rows of a report, if nothing is given."""
