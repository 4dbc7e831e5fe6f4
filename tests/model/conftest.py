"""Fixtures of `tests.support.tiny_models`."""

from tests.support.tiny_models import corpus, model_folder, tiny_model

__all__ = ["corpus", "model_folder", "tiny_model"]
