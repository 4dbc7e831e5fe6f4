"""``report.html``: one page that opens offline."""
