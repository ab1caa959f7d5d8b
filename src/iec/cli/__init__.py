"""The command line: parse, call, print."""

from iec.cli.app import main

__all__ = ["main"]
