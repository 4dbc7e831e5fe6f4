"""Report in, text out: terminal, Markdown, GitHub, HTML. Nothing is measured or judged here; no torch is imported."""
