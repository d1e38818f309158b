"""The command line and the settings: the front door, which wires the rest."""

__version__ = "0.1.0"
