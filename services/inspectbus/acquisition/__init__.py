"""Acquisition: stations read their sources or take pushed frames, and publish them on the bus, under stable ids."""
