"""How is a report read? Terminal, Markdown, GitHub and HTML; nothing is measured or judged here."""
