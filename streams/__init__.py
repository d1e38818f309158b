"""Ingest and settle as dataflows; thin."""
