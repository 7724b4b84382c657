"""Preprocessing: frames from the bus become prepared frames, or a HOLD that says why not. Owner of the recipes."""
