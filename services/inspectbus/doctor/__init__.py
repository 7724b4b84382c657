"""The doctor: what is wrong with a plant, in words, with what to do about it.

    settings ─> checks, each on a thread of its own and bounded ─> findings: ok, warn, fail

A check looks and does not touch, except the frame store's, which leaves nothing behind.
"""
