"""Figures (PNG) and the one-file HTML report. Lazy: importing it loads neither matplotlib nor jinja2."""
