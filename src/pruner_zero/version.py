"""The version of the package, stated only here."""

__version__ = "0.4.0"
