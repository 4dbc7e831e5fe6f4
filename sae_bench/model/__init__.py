"""How is a language model run from a site on?"""
