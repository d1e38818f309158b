"""The edges: the log, files, and later meters, switches and SMS."""
