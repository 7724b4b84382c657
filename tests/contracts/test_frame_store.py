"""Does the frame store keep its promises, in a folder and in a bucket?"""

from __future__ import annotations

import errno
import hashlib
import os
import threading
import time
import uuid
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import pytest

from inspectbus.api.v1.frame_pb2 import Claim, Frame
from inspectbus.errors import BadField, CorruptObject, NotFound, StorageAway, StorageFull
from inspectbus.stores.frames import FrameStore, checked_claim, default_url, evidence_key, original_key
from tests.doubles.buckets import bucket_server

FRAME_ID = "3f2a8f0e-0a3b-5c4d-8e6f-0a1b2c3d4e5f"
KEY = evidence_key("line-1", "top", FRAME_ID, "original", "png")
IMAGE = os.urandom(300_000)

NO_KEYS = [
    "../line-1/top/3f/original.png",
    "line-1/../../etc/passwd",
    "line-1/top/..",
    "/etc/passwd",
    "http://example.org/image.png",
    "https://example.org/image.png",
    "s3://bucket/line-1/top/image.png",
    "file:///etc/passwd",
    "line-1//top/image.png",
    "line-1\\top\\image.png",
    "line-1/top/image.png\n",
    "line-1/top/image.png?versionId=1",
    "line-1/top/*.png",
    "line-1/top/%2e%2e/image.png",
    "line-1/top/\x00.png",
    "line-1",
    "",
    "a/" + "b" * 2000,
]


@dataclass
class Form:
    """One form of the store, and how to take it away."""

    url: str
    take_away: Callable[[], None]

    def open(self, **how: bool) -> FrameStore:
        return FrameStore(self.url, **how)


@pytest.fixture(params=["file", "s3"])
def form(request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Form]:
    if request.param == "file":
        root = tmp_path / "deep" / "frames"
        yield Form(f"file://{root}", lambda: _unmount(root))
        return
    with bucket_server(monkeypatch) as server:
        yield Form(f"{server.new_bucket()}/plant/frames", server.stop)


def _unmount(root: Path) -> None:
    if root.exists():
        root.rename(root.with_name("unmounted"))
    root.parent.mkdir(parents=True, exist_ok=True)
    root.write_text("what stands where the volume should be")


@pytest.fixture
def store(form: Form) -> FrameStore:
    return form.open()


def claim_with(claim: Claim, **fields: object) -> Claim:
    changed = Claim()
    changed.CopyFrom(claim)
    for name, value in fields.items():
        setattr(changed, name, value)
    return changed


def test_what_is_claimed_is_fetched_by_whoever_opens_the_same_store(form: Form, store: FrameStore) -> None:
    claim = store.claim(KEY, IMAGE)

    assert (claim.key, claim.size, claim.sha256) == (KEY, len(IMAGE), hashlib.sha256(IMAGE).digest())
    assert form.open().fetch(claim) == form.open().get(KEY) == IMAGE
    assert store.size(KEY) == len(IMAGE)


@pytest.mark.parametrize("data", [b"", b"\x00"], ids=["nothing", "one byte"])
def test_the_smallest_objects_come_back_too(store: FrameStore, data: bytes) -> None:
    assert store.fetch(store.claim(KEY, data)) == data


def test_claiming_the_same_bytes_again_changes_nothing(store: FrameStore) -> None:
    first = store.claim(KEY, IMAGE)

    assert store.claim(KEY, IMAGE) == first
    assert store.fetch(first) == IMAGE


def test_a_missing_object_is_not_found_and_trying_again_would_not_help(store: FrameStore) -> None:
    store.put(evidence_key("line-1", "top", str(uuid.uuid4()), "original", "png"), b"another")
    claim = Claim(key=KEY, sha256=b"\x00" * 32, size=7)

    for look in (lambda: store.fetch(claim), lambda: store.get(KEY), lambda: store.size(KEY)):
        with pytest.raises(NotFound, match=FRAME_ID) as caught:
            look()
        assert not caught.value.retryable


@pytest.mark.parametrize(
    ("now", "words"),
    [
        (IMAGE[:-1] + bytes([IMAGE[-1] ^ 1]), "sha256"),
        (IMAGE[:-1], "299999"),
        (IMAGE + b"\x00", "more than 300000"),
        (b"", "0 bytes"),
    ],
    ids=["one bit", "cut short", "one byte more", "emptied"],
)
def test_an_object_that_was_changed_is_refused_for_good(store: FrameStore, now: bytes, words: str) -> None:
    claim = store.claim(KEY, IMAGE)
    store.put(KEY, now)

    with pytest.raises(CorruptObject, match=words) as caught:
        store.fetch(claim)
    assert not caught.value.retryable


def test_a_claim_without_its_hash_fits_nothing(store: FrameStore) -> None:
    claim = store.claim(KEY, IMAGE)

    with pytest.raises(CorruptObject, match="sha256"):
        store.fetch(claim_with(claim, sha256=b""))


def test_more_than_the_limit_is_refused_before_anything_is_read(store: FrameStore) -> None:
    claim = Claim(key=KEY, sha256=b"\x00" * 32, size=2**60)

    with pytest.raises(BadField, match="at most 1000") as caught:
        store.fetch(claim, limit_bytes=1000)
    assert caught.value.field == "claim.size"
    assert len(store.fetch(store.claim(KEY, b"x" * 1000), limit_bytes=1000)) == 1000


@pytest.mark.parametrize("key", NO_KEYS, ids=repr)
def test_only_keys_are_taken_and_never_a_path_or_a_url(store: FrameStore, key: str) -> None:
    uses: list[Callable[[], object]] = [
        lambda: store.put(key, b"x"),
        lambda: store.claim(key, b"x"),
        lambda: store.get(key),
        lambda: store.fetch(Claim(key=key, sha256=hashlib.sha256(b"x").digest(), size=1)),
        lambda: store.size(key),
        lambda: store.delete(key),
    ]
    for use in uses:
        with pytest.raises(BadField, match="not a frame-store key"):
            use()


def test_a_deleted_object_is_gone_and_deleting_it_twice_is_no_fault(store: FrameStore) -> None:
    other = evidence_key("line-1", "top", str(uuid.uuid4()), "original", "png")
    claim, stays = store.claim(KEY, IMAGE), store.claim(other, IMAGE)

    store.delete(KEY)
    store.delete(KEY)

    with pytest.raises(NotFound):
        store.fetch(claim)
    assert store.fetch(stays) == IMAGE


def test_a_store_that_is_away_may_be_tried_again_and_says_so_soon(form: Form, store: FrameStore) -> None:
    claim = store.claim(KEY, IMAGE)
    form.take_away()

    uses: list[Callable[[], object]] = [
        lambda: store.put(KEY, b"x"),
        lambda: store.claim(KEY, b"x"),
        lambda: store.get(KEY),
        lambda: store.fetch(claim),
        lambda: store.size(KEY),
        lambda: store.delete(KEY),
    ]
    for use in uses:
        begun_s = time.monotonic()
        with pytest.raises(StorageAway, match="frame store") as caught:
            use()
        assert caught.value.retryable
        assert time.monotonic() - begun_s < 15


# The folder


def test_a_folder_keeps_names_that_a_url_would_spell_otherwise(tmp_path: Path) -> None:
    state = tmp_path / "line one%20"
    FrameStore(default_url(state)).put(KEY, IMAGE)

    assert (state / "frames" / KEY).read_bytes() == IMAGE
    assert FrameStore(str(state / "frames")).get(KEY) == IMAGE


@pytest.mark.parametrize("fsync", [False, True])
def test_nothing_but_the_object_is_left_in_a_folder(tmp_path: Path, fsync: bool) -> None:
    FrameStore(f"file://{tmp_path}", fsync=fsync).put(KEY, IMAGE)

    assert [file for file in tmp_path.rglob("*") if file.is_file()] == [tmp_path / KEY]


def test_with_fsync_bytes_and_names_reach_the_disk_before_put_returns(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    synced: list[str] = []
    fsync = os.fsync

    def watched(descriptor: int) -> None:
        synced.append(os.readlink(f"/proc/self/fd/{descriptor}"))
        fsync(descriptor)

    monkeypatch.setattr(os, "fsync", watched)
    FrameStore(f"file://{tmp_path}/frames", fsync=True).put(KEY, IMAGE)

    assert synced[0].endswith(".part")
    folders = [tmp_path / "frames" / name for name in ("line-1/top/3f", "line-1/top", "line-1", ".")]
    assert synced[1:] == [str(folder) for folder in folders]


def test_a_full_disk_says_so_and_keeps_no_half_image(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    store = FrameStore(f"file://{tmp_path}")
    store.put(KEY, IMAGE)

    def full(self: Path, target: Path) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(Path, "replace", full)
    with pytest.raises(StorageFull, match="No space left") as caught:
        store.put(KEY, b"another")

    assert caught.value.retryable
    assert store.get(KEY) == IMAGE
    assert [file for file in tmp_path.rglob("*") if file.is_file()] == [tmp_path / KEY]


def test_many_writers_of_one_key_leave_one_whole_object(tmp_path: Path) -> None:
    stores = [FrameStore(f"file://{tmp_path}") for _ in range(4)]
    images = [bytes([number]) * 200_000 for number in range(16)]

    with ThreadPoolExecutor(8) as pool:
        claims = list(pool.map(lambda n: stores[n % 4].claim(KEY, images[n]), range(16)))

    assert stores[0].get(KEY) in images
    assert sum(_fits(stores[0], claim) for claim in claims) == 1


def _fits(store: FrameStore, claim: Claim) -> bool:
    try:
        store.fetch(claim)
    except CorruptObject:
        return False
    return True


# The bucket


def test_a_bucket_that_is_not_there_is_a_store_that_is_away(monkeypatch: pytest.MonkeyPatch) -> None:
    with bucket_server(monkeypatch):
        store = FrameStore("s3://no-such-bucket/frames")
        with pytest.raises(StorageAway, match="bucket does not exist"):
            store.put(KEY, IMAGE)
        with pytest.raises(StorageAway, match="bucket does not exist"):
            store.fetch(Claim(key=KEY, sha256=b"", size=3))


def test_a_bucket_that_answers_nothing_is_given_up_in_time(monkeypatch: pytest.MonkeyPatch) -> None:
    import socket

    from inspectbus.stores import objects

    monkeypatch.setattr(objects, "CALL_TIMEOUT_S", 1.0)
    with bucket_server(monkeypatch), socket.create_server(("127.0.0.1", 0)) as silent:
        monkeypatch.setenv("AWS_ENDPOINT_URL", f"http://127.0.0.1:{silent.getsockname()[1]}")
        begun_s = time.monotonic()
        with pytest.raises(StorageAway, match="does not answer"):
            FrameStore("s3://frames").put(KEY, IMAGE)
        assert time.monotonic() - begun_s < 10


def test_threads_share_a_bucket(monkeypatch: pytest.MonkeyPatch) -> None:
    with bucket_server(monkeypatch) as server:
        store = FrameStore(server.new_bucket())
        keys = [evidence_key("line-1", "top", str(uuid.uuid4()), "original", "png") for _ in range(16)]
        gate = threading.Barrier(8, timeout=20)

        def work(number: int) -> bool:
            if number < 8:
                gate.wait()
            return store.fetch(store.claim(keys[number], IMAGE[: 1000 * number])) == IMAGE[: 1000 * number]

        with ThreadPoolExecutor(8) as pool:
            assert all(pool.map(work, range(16)))


# Words about keys and URLs


@pytest.mark.parametrize(
    "url", ["http://example.org/frames", "ftp://host/frames", "s3://", "file://host/x", "memory://"]
)
def test_other_stores_are_refused_by_the_settings_name(url: str) -> None:
    with pytest.raises(BadField, match="names no frame store") as caught:
        FrameStore(url)
    assert caught.value.field == "frame_store_url"


@pytest.mark.parametrize(
    "key",
    [
        KEY.replace("line-1", "line-2"),
        KEY.replace("top", "side"),
        KEY.replace(FRAME_ID, "c127629f-8b08-4fb6-b920-8e5811c433b3"),
        f"{FRAME_ID}-original.png",
        "../" + KEY,
        "",
    ],
)
def test_a_frame_may_claim_nobody_elses_object(key: str) -> None:
    frame = Frame(frame_id=FRAME_ID, line="line-1", station="top")
    mine = Claim(key=KEY)

    assert checked_claim(mine, frame, "claim") is mine
    with pytest.raises(BadField, match="no frame-store key of frame") as caught:
        checked_claim(Claim(key=key), frame, "claim")
    assert caught.value.field == "claim.key"


@pytest.mark.parametrize(
    ("magic", "suffix"),
    [
        (b"\x89PNG\r\n\x1a\n", "png"),
        (b"\xff\xd8\xff\xe0", "jpg"),
        (b"BM\x00", "bmp"),
        (b"II*\x00", "tif"),
        (b"MM\x00*", "tif"),
        (b"hello", "bin"),
        (b"", "bin"),
    ],
)
def test_an_originals_suffix_is_told_from_its_first_bytes(magic: bytes, suffix: str) -> None:
    frame = Frame(frame_id=FRAME_ID, line="line-1", station="top")

    assert original_key(frame, magic) == evidence_key("line-1", "top", FRAME_ID, "original", suffix)
