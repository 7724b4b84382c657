"""What is wrong with a data set before anybody trains on it. Nothing here decides what a training makes.

pictures ─> sketches.py ─> likeness.py ─> pairs that show the same thing
"""

from inspectbus.stores.datasets.check.likeness import Pair, alike, near_across
from inspectbus.stores.datasets.check.sketches import sketch

__all__ = ["Pair", "alike", "near_across", "sketch"]
