"""Argument parser with the exit code that usage errors have here."""

from __future__ import annotations

import argparse
import sys
from typing import NoReturn, TypeAlias

USAGE_EXIT = 4


class Parser(argparse.ArgumentParser):
    """Parser that ends with exit code 4; argparse ends with 2, which pytest uses for an interruption."""

    def error(self, message: str) -> NoReturn:
        """Print the usage and the error, and exit."""
        self.print_usage(sys.stderr)
        self.exit(USAGE_EXIT, f"{self.prog}: {message}\n")


Commands: TypeAlias = "argparse._SubParsersAction[Parser]"
