"""Pages as one HTML file, and figures for notebooks. Lazy: importing it loads neither matplotlib nor jinja2."""
