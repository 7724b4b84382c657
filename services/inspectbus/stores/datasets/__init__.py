"""Data sets: labelled images in folders, or a package of them, as items that know where their bytes are.

"elpv" | folder ─> opening ─> Dataset ─> splits ─┬─> train ─────> training, which takes its validation part by `cut`
                     │                           └─> held_out ──> replay, evaluation
                     └─> check/ ──> what is wrong with it, in words

A folder is one of

    <root>/manifest.csv | manifest.jsonl      the list of what belongs to it (manifests.py)
    <root>/<class>/...                        two class folders; deeper folders name the kind of the item (folders.py)
    <root>/{train,test}/<class>/...           the same in two halves, which are kept
    <root>/{train,test,ground_truth}/...      MVTec AD's layout, whose halves are not kept (mvtec.py)
    <root>/*.png                              images without labels

`group` is the physical part and `lot` the batch it was made in: images of one part, or of one lot where the part is not
known, never stand on both sides of a cut.
"""

from inspectbus.stores.datasets.class_names import CLASS_NAMES, HALVES
from inspectbus.stores.datasets.fingerprints import fingerprint
from inspectbus.stores.datasets.items import IMAGE_SUFFIXES, Dataset, Item, Label
from inspectbus.stores.datasets.manifests import JSON_LINES, MANIFEST
from inspectbus.stores.datasets.opening import ELPV, open_dataset
from inspectbus.stores.datasets.splits import HELD_OUT_SHARE, SPLIT_SEED, Split, cut, split

__all__ = [
    "CLASS_NAMES",
    "ELPV",
    "HALVES",
    "HELD_OUT_SHARE",
    "IMAGE_SUFFIXES",
    "JSON_LINES",
    "MANIFEST",
    "SPLIT_SEED",
    "Dataset",
    "Item",
    "Label",
    "Split",
    "cut",
    "fingerprint",
    "open_dataset",
    "split",
]
