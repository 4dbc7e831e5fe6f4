"""How does a person start it? pytest, the command line, notebooks and test files."""
