"""Inference: prepared frames in, decisions out; one batcher between both doors and the network."""
