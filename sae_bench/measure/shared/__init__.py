"""Measuring code that several properties use."""
