"""Charts of metrics and series, as plotly figures or inline SVG."""
