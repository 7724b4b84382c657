"""The vocabulary: frames, recipes, preparations, scores, model versions. Pure: no I/O, no threads, no other room."""
