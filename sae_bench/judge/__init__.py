"""When does a number become an opinion? numpy and scipy only; no file, no terminal, no torch."""
