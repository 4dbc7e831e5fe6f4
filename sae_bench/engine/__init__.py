"""How is it computed once and cheaply? Corpora, captured activations, suffix runs and noise floors."""
