"""Figures (PNG) and the one-file HTML report. Lazy: importing the room imports neither matplotlib nor jinja2."""
