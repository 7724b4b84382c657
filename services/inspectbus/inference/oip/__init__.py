"""The Open Inference Protocol, version 2: a standard's door to the same batcher, for clients that others wrote.

ModelInferRequest ── request ──> images ─> batcher ─> scores ── response ──> ModelInferResponse
"""
