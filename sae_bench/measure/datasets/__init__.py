"""Readers of the labelled data that properties measure: concepts, contrast questions and circuit prompts."""
