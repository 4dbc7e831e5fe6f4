"""Labelled data that properties read: concepts, contrast questions and circuit prompts."""
