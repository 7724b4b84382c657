"""Is every image file either decoded to the pixels it holds, or refused with a reason?"""

from __future__ import annotations

import struct
import tracemalloc

import cv2
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from inspectbus.errors import UnreadableImage
from inspectbus.imaging.decoding import DecodeLimits, decode
from inspectbus.imaging.headers import read_header
from tests.doubles.pictures import encoded, header_bomb, png_chunk, textured

FORMS: dict[str, tuple[str, *tuple[int, ...]]] = {
    "png": (".png",),
    "jpeg": (".jpg",),
    "progressive jpeg": (".jpg", cv2.IMWRITE_JPEG_PROGRESSIVE, 1),
    "jpeg with restart markers": (".jpg", cv2.IMWRITE_JPEG_RST_INTERVAL, 4),
    "bmp": (".bmp",),
    "tiff": (".tif",),
    "plain tiff": (".tif", cv2.IMWRITE_TIFF_COMPRESSION, 1),
}
LOSSLESS = [name for name in FORMS if "jpeg" not in name]


@pytest.fixture(params=FORMS)
def file(request: pytest.FixtureRequest) -> bytes:
    return encoded(textured(), *FORMS[request.param])


@pytest.mark.parametrize("form", LOSSLESS)
def test_a_colour_picture_comes_back_as_it_was(form: str) -> None:
    picture = textured()

    decoded = decode(encoded(picture, *FORMS[form]))

    assert decoded.dtype == np.uint8
    np.testing.assert_array_equal(decoded, picture)


def test_a_jpeg_keeps_its_colours_in_rgb_order() -> None:
    red = np.zeros((32, 48, 3), np.uint8)
    red[:] = (200, 30, 20)

    decoded = decode(encoded(red, ".jpg"))

    np.testing.assert_allclose(decoded, red, atol=3)


@pytest.mark.parametrize("suffix", [".png", ".bmp", ".tif", ".jpg"])
def test_grey_is_repeated_in_three_channels(suffix: str) -> None:
    grey = np.full((20, 30), 77, np.uint8)

    assert np.array_equal(decode(encoded(grey, suffix)), np.full((20, 30, 3), 77, np.uint8))


@pytest.mark.parametrize("suffix", [".png", ".tif"])
@pytest.mark.parametrize("channels", [1, 3])
def test_16_bits_are_scaled_by_one_factor_for_every_image(suffix: str, channels: int) -> None:
    # given a dim picture: scaling it by its own maximum would brighten it
    values = np.random.default_rng(3).integers(0, 9000, (30, 40, channels), dtype=np.uint16)

    decoded = decode(encoded(values.squeeze(), suffix))

    np.testing.assert_array_equal(decoded, np.broadcast_to(np.rint(values / 257).astype(np.uint8), (30, 40, 3)))
    assert decode(encoded(np.full((16, 16), 65535, np.uint16), suffix)).max() == 255


@pytest.mark.parametrize("suffix", [".png", ".tif"])
def test_alpha_is_dropped_and_not_blended(suffix: str) -> None:
    rgba = np.zeros((20, 30, 4), np.uint8)
    rgba[:] = (200, 100, 50, 0)

    assert decode(encoded(rgba, suffix))[5, 5].tolist() == [200, 100, 50]


def test_a_black_and_white_png_of_one_bit_is_taken() -> None:
    checks = np.kron(np.eye(8, dtype=np.uint8) * 255, np.ones((4, 4), np.uint8))

    decoded = decode(encoded(checks, ".png", cv2.IMWRITE_PNG_BILEVEL, 1))

    np.testing.assert_array_equal(decoded[:, :, 0], checks)


def test_the_exif_orientation_is_ignored() -> None:
    picture = textured(64, 96)
    plain = encoded(picture, ".jpg")
    # orientation 6: "turn by 90 degrees"
    tags = b"Exif\0\0MM\0*\0\0\0\x08" + struct.pack(">HHHIHHI", 1, 0x0112, 3, 1, 6, 0, 0)
    turned = plain[:2] + b"\xff\xe1" + struct.pack(">H", len(tags) + 2) + tags + plain[2:]

    np.testing.assert_array_equal(decode(turned), decode(plain))


def test_a_file_cut_anywhere_is_refused(file: bytes) -> None:
    cuts = {*range(0, 80), *range(80, len(file), 97), *range(len(file) - 40, len(file))}

    for cut in sorted(cuts):
        with pytest.raises(UnreadableImage) as refused:
            decode(file[:cut])
        assert refused.value.field == "image"
    assert decode(file).shape == (120, 160, 3)


def test_a_cut_file_is_refused_by_our_own_reading_and_not_by_the_decoders_mood(file: bytes) -> None:
    for cut in range(0, len(file), 131):
        with pytest.raises(UnreadableImage):
            read_header(file[:cut])


# A BMP and a plain TIFF hold bare pixels: there black rows are as good as any.
@pytest.mark.parametrize("form", [name for name in FORMS if name not in ("bmp", "plain tiff")])
def test_a_file_filled_up_with_zeros_after_a_broken_transfer_is_refused(form: str) -> None:
    file = encoded(textured(), *FORMS[form])
    half = len(file) // 2

    with pytest.raises(UnreadableImage):
        decode(file[:half] + bytes(len(file) - half))


def test_a_cut_jpeg_with_an_intact_thumbnail_is_refused() -> None:
    # given an EXIF thumbnail, whose end-of-image marker stands in the middle of the file
    thumbnail = b"Exif\0\0" + encoded(textured(16, 16), ".jpg")
    plain = encoded(textured(), ".jpg")
    whole = plain[:2] + b"\xff\xe1" + struct.pack(">H", len(thumbnail) + 2) + thumbnail + plain[2:]
    assert decode(whole).shape == (120, 160, 3)

    with pytest.raises(UnreadableImage, match="cut short"):
        decode(whole[:-2])


def test_bytes_after_the_end_do_no_harm(file: bytes) -> None:
    np.testing.assert_array_equal(decode(file + b"\0" * 100), decode(file))


@pytest.mark.parametrize(
    ("image", "words"),
    [
        (b"", "empty"),
        (b"Dear line manager, no image today.\n", "not a PNG"),
        (b"GIF89a" + bytes(100), "not a PNG"),
        (encoded(np.zeros((1, 1, 3), np.uint8)), "1x1"),
        (encoded(np.zeros((15, 400, 3), np.uint8)), "400x15"),
        (header_bomb(), "30000x30000"),
        (header_bomb(2**31 - 1, 2**31 - 1), "2147483647x2147483647"),
        (header_bomb(0, 5), "0x5"),
        (header_bomb(100, 100), "damaged"),
        (encoded(textured(), ".png")[:8] + bytes(200), "damaged"),
        (b"\xff\xd8\xff\xd9", "holds no picture"),
    ],
    ids=lambda value: value if isinstance(value, str) else "file",
)
def test_what_is_no_usable_image_is_refused_in_words(image: bytes, words: str) -> None:
    with pytest.raises(UnreadableImage, match=words) as refused:
        decode(image)
    assert refused.value.field == "image"


def test_a_header_bomb_costs_no_memory() -> None:
    bombs = [header_bomb(), _jpeg_of_size(65500, 65500), _bmp_of_size(60000, 60000), _tiff_of_size(50000, 50000)]
    tracemalloc.start()
    try:
        for bomb in bombs:
            with pytest.raises(UnreadableImage, match=r"pixels are decoded|cut short"):
                decode(bomb)
        assert tracemalloc.get_traced_memory()[1] < 1_000_000
    finally:
        tracemalloc.stop()


def test_the_limits_are_the_callers() -> None:
    image = encoded(textured(120, 160))

    assert decode(image, DecodeLimits(max_pixels=120 * 160)).shape == (120, 160, 3)
    with pytest.raises(UnreadableImage, match="at most 19199 pixels"):
        decode(image, DecodeLimits(max_pixels=120 * 160 - 1))
    with pytest.raises(UnreadableImage, match="bytes"):
        decode(image, DecodeLimits(max_bytes=len(image) - 1))
    with pytest.raises(UnreadableImage, match="at least 121"):
        decode(image, DecodeLimits(min_side=121))


def test_a_tiff_that_tells_its_layout_first_is_refused_when_its_pixels_are_cut() -> None:
    # cameras that stream write the directory before the pixels, so that a cut file still opens
    whole = _tiff_of_size(64, 32, data=bytes(64 * 32))
    assert decode(whole).shape == (32, 64, 3)

    for cut in range(8, len(whole), 61):
        with pytest.raises(UnreadableImage, match="cut short"):
            decode(whole[:cut])


def test_a_tiff_of_several_pages_is_refused() -> None:
    ok, pages = cv2.imencodemulti(".tif", [textured(), textured(seed=1)])
    assert ok

    with pytest.raises(UnreadableImage, match="more than one page"):
        decode(bytes(pages))


def test_a_tiff_whose_tiles_dwarf_its_picture_is_refused() -> None:
    with pytest.raises(UnreadableImage, match="tiles"):
        decode(_tiff_of_size(100, 100, tile=1_000_000))


def test_an_animated_png_is_refused() -> None:
    still = encoded(textured())
    header_end = 8 + 25
    animated = still[:header_end] + png_chunk(b"acTL", struct.pack(">II", 2, 0)) + still[header_end:]

    with pytest.raises(UnreadableImage, match="animated"):
        decode(animated)


def test_a_png_with_one_flipped_bit_is_refused() -> None:
    image = bytearray(encoded(textured()))
    image[len(image) // 2] ^= 0x10

    with pytest.raises(UnreadableImage, match="checksum"):
        decode(bytes(image))


def test_a_jpeg_of_endless_scans_is_refused() -> None:
    jpeg = encoded(textured(), ".jpg", cv2.IMWRITE_JPEG_PROGRESSIVE, 1)
    scan = jpeg.rindex(b"\xff\xda")

    with pytest.raises(UnreadableImage, match="scans"):
        decode(jpeg[:-2] + jpeg[scan:-2] * 500 + b"\xff\xd9")


@pytest.mark.parametrize("values", [np.float32, np.int32, np.int16])
def test_values_that_are_no_grey_levels_are_refused(values: type) -> None:
    odd = cv2.imencode(".tif", np.full((20, 30), 7).astype(values))[1]

    with pytest.raises(UnreadableImage, match="bits"):
        decode(bytes(odd))


@settings(max_examples=150, deadline=None)
@given(
    st.sampled_from([b"\x89PNG\r\n\x1a\n", b"\xff\xd8\xff", b"BM", b"II*\0", b"MM\0*", b""]), st.binary(max_size=200)
)
def test_any_bytes_are_decoded_or_refused_and_nothing_else(magic: bytes, rest: bytes) -> None:
    try:
        decode(magic + rest)
    except UnreadableImage as refused:
        assert refused.message  # noqa: PT017 - either outcome is right


@settings(max_examples=150, deadline=None)
@given(st.sampled_from(sorted(FORMS)), st.data())
def test_a_damaged_file_is_decoded_or_refused_and_nothing_else(form: str, data: st.DataObject) -> None:
    file = bytearray(encoded(textured(48, 64), *FORMS[form]))
    for _ in range(data.draw(st.integers(1, 4))):
        file[data.draw(st.integers(0, len(file) - 1))] = data.draw(st.integers(0, 255))
    try:
        decoded = decode(bytes(file))
    except UnreadableImage:
        return
    assert decoded.dtype == np.uint8
    assert decoded.ndim == 3


def test_bad_files_leave_standard_error_alone(capfd: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(UnreadableImage):
        decode(_tiff_of_size(100, 100, data=bytes(64)))

    assert capfd.readouterr().err == ""


def _jpeg_of_size(width: int, height: int) -> bytes:
    jpeg = bytearray(encoded(textured(), ".jpg"))
    frame = jpeg.index(b"\xff\xc0")
    jpeg[frame + 5 : frame + 9] = struct.pack(">HH", height, width)
    return bytes(jpeg)


def _bmp_of_size(width: int, height: int) -> bytes:
    bmp = bytearray(encoded(textured(), ".bmp"))
    bmp[18:26] = struct.pack("<ii", width, height)
    return bytes(bmp)


def _tiff_of_size(width: int, height: int, *, tile: int = 0, packing: int = 1, data: bytes = bytes(64)) -> bytes:
    """Grey, in the order header, directory, pixels."""
    entries = [(256, 4, 1, width), (257, 4, 1, height), (258, 3, 1, 8), (259, 3, 1, packing), (262, 3, 1, 1)]
    place = 8 + 2 + 12 * (len(entries) + (4 if tile else 3)) + 4
    if tile:
        entries += [(322, 4, 1, tile), (323, 4, 1, tile), (324, 4, 1, place), (325, 4, 1, len(data))]
    else:
        entries += [(273, 4, 1, place), (278, 4, 1, height), (279, 4, 1, len(data))]
    directory = struct.pack("<H", len(entries)) + b"".join(struct.pack("<HHII", *entry) for entry in entries)
    return b"II*\0" + struct.pack("<I", 8) + directory + struct.pack("<I", 0) + data
