"""Image files as arrays: deep pixels, transparency, orientation, and files that are odd."""

import io
import struct
import zlib

import numpy as np
import pytest
from PIL import Image, ImageOps

from recipes.data import pixels

DEEP = np.array([[0, 257, 65535], [300, 32896, 65278]], "uint16")
DEEP_AS_8_BITS = [[0, 1, 255], [1, 128, 254]]


def saved(image, file_format="PNG", **options):
    stream = io.BytesIO()
    image.save(stream, file_format, **options)
    return stream.getvalue()


def png(width, depth, colour_type, row, **chunks):
    """A PNG of one row as it may be by its standard, whatever Pillow can write."""
    header = struct.pack(">IIBBBBB", width, 1, depth, colour_type, 0, 0, 0)
    named = {"IHDR": header, **chunks, "IDAT": zlib.compress(b"\0" + row), "IEND": b""}
    parts = [(name.encode(), content) for name, content in named.items()]
    return b"\x89PNG\r\n\x1a\n" + b"".join(
        struct.pack(">I", len(content))
        + name
        + content
        + struct.pack(">I", zlib.crc32(name + content))
        for name, content in parts
    )


def tiff(values, bits, *, interpretation=1, sample_format=1):
    """A TIFF of one row of two pixels, without compression."""
    short, long = 3, 4
    tags = [(256, short, 2), (257, short, 1), (258, short, bits), (259, short, 1)]
    tags += [(262, short, interpretation), (273, long, 8), (277, short, 1), (278, short, 1)]
    tags += [(279, long, len(values)), (339, short, sample_format)]
    found = b"II*\0" + struct.pack("<I", 8 + len(values)) + values + struct.pack("<H", len(tags))
    for tag, kind, value in tags:
        found += struct.pack("<HHIHxx" if kind == short else "<HHII", tag, kind, 1, value)
    return found + struct.pack("<I", 0)


DEEP_FILES = {
    "PNG": saved(Image.fromarray(DEEP)),
    "PGM": b"P5 3 2 65535 " + DEEP.astype(">u2").tobytes(),
    "PGM in digits": b"P2 3 2 65535 " + " ".join(map(str, DEEP.ravel())).encode(),
    "TIFF": saved(Image.fromarray(DEEP), "TIFF"),
    "packed TIFF": saved(Image.fromarray(DEEP), "TIFF", compression="tiff_lzw"),
    "big-endian TIFF": saved(
        Image.frombytes("I;16B", (3, 2), DEEP.astype(">u2").tobytes()), "TIFF"
    ),
}


@pytest.mark.parametrize("case", DEEP_FILES)
def test_grey_of_16_bits(case):
    found = pixels.decode(DEEP_FILES[case])
    assert (found.tolist(), found.dtype) == (DEEP_AS_8_BITS, "uint8")


def test_ranges_that_the_file_names():
    assert pixels.decode(b"P2 3 1 1000 0 500 1000").tolist() == [[0, 128, 255]]
    assert pixels.decode(b"P2 3 1 4 0 1 4").tolist() == [[0, 64, 255]]
    twelve = tiff(b"\xff\xf8\x00\0", 12)  # 4095 and 2048
    assert pixels.decode(twelve).tolist() == [[255, 128]]
    white_is_zero = tiff(struct.pack("<2H", 0, 65278), 16, interpretation=0)
    assert pixels.decode(white_is_zero).tolist() == [[255, 1]]


@pytest.mark.parametrize("options", [{}, {"compression": "tiff_lzw"}])
def test_floats(options):
    values = np.array([[0, 0.2, 0.4], [0.6, 0.8, 1]], "float32")
    content = saved(Image.fromarray(values), "TIFF", **options)
    assert pixels.decode(content).tolist() == [[0, 51, 102], [153, 204, 255]]


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (tiff(struct.pack("<2f", 0, 255), 32, sample_format=3), "floats from 0 to 255, not from 0"),
        (tiff(struct.pack("<2f", -0.5, 1), 32, sample_format=3), "floats from -0.5 to 1, not from"),
        (tiff(struct.pack("<2f", 0.5, np.nan), 32, sample_format=3), "floats from nan to nan"),
        (tiff(struct.pack("<2i", 0, 255), 32, sample_format=2), "32 bits or with a sign, of which"),
        (tiff(struct.pack("<2I", 0, 2**32 - 1), 32), "integers of 32 bits"),
        (tiff(struct.pack("<2h", -1000, 1000), 16, sample_format=2), "integers of .* with a sign"),
    ],
)
def test_black_and_white_that_cannot_be_known(content, message):
    with pytest.raises(ValueError, match=message):
        pixels.decode(content)


@pytest.mark.parametrize(
    ("mode", "value", "expected"),
    [
        ("RGBA", (0, 0, 0, 0), [255, 255, 255]),
        ("RGBA", (0, 0, 0, 255), [0, 0, 0]),
        ("RGBA", (0, 100, 255, 51), [204, 224, 255]),
        ("LA", (0, 0), 255),
        ("LA", (100, 51), 224),
        ("LA", (100, 255), 100),
        ("LA", (7, 100), 158),  # 157.7
    ],
)
@pytest.mark.parametrize("file_format", ["PNG", "TIFF"])
def test_transparency_is_laid_over_white(mode, value, expected, file_format):
    content = saved(Image.new(mode, (2, 1), value), file_format)
    assert pixels.decode(content).tolist() == [[expected] * 2]


def test_a_shape_in_the_alpha_channel_only():
    alpha = np.array([[0, 255], [255, 0]], "uint8")
    drawn = np.stack([np.zeros_like(alpha)] * 3 + [alpha], -1)
    assert pixels.decode(saved(Image.fromarray(drawn)))[..., 0].tolist() == [[255, 0], [0, 255]]


def test_one_value_that_is_transparent():
    row = struct.pack(">3H", 500, 0, 65535)
    assert pixels.decode(png(3, 16, 0, row, tRNS=struct.pack(">H", 500))).tolist() == [
        [255, 0, 255]
    ]
    assert pixels.decode(png(3, 8, 0, b"\5\0\7", tRNS=b"\0\5")).tolist() == [[255, 0, 7]]
    colours = {"PLTE": bytes([0, 0, 0, 0, 100, 255, 9, 9, 9]), "tRNS": bytes([0, 51])}
    found = pixels.decode(png(3, 8, 3, b"\0\1\2", **colours))
    assert found.tolist() == [[[255, 255, 255], [204, 224, 255], [9, 9, 9]]]


def test_grey_with_transparency_of_16_bits_has_one_channel():
    row = struct.pack(">6H", 0, 0, 0, 65535, 32896, 65535)
    assert pixels.decode(png(3, 16, 4, row)).tolist() == [[255, 0, 128]]


PICTURE = Image.fromarray(np.arange(24, dtype="uint8").reshape(4, 6) * 10)


@pytest.mark.parametrize("file_format", ["JPEG", "PNG", "TIFF", "WEBP"])
@pytest.mark.parametrize("orientation", range(1, 10))
def test_orientation(file_format, orientation):
    exif = Image.Exif()
    exif[274] = orientation
    content = saved(PICTURE, file_format, exif=exif)
    with Image.open(io.BytesIO(content)) as file:
        expected = np.asarray(ImageOps.exif_transpose(file))
    np.testing.assert_array_equal(pixels.decode(content), expected)


def test_orientation_of_deep_pixels():
    exif = Image.Exif()
    exif[274] = 6
    found = pixels.decode(saved(Image.fromarray(DEEP), exif=exif))
    assert found.tolist() == [[1, 0], [128, 1], [254, 255]]


def exif_data(*entries):
    """EXIF data of entries that are 16-bit numbers, or the bytes of what is longer."""
    end, found, behind = 14 + 12 * len(entries), b"", b""
    for tag, kind, count, value in entries:
        if isinstance(value, bytes):
            found += struct.pack("<HHII", tag, kind, count, end + len(behind))
            behind += value
        else:
            found += struct.pack("<HHIHxx", tag, kind, count, value)
    head = b"Exif\0\0II*\0" + struct.pack("<IH", 8, len(entries))
    return head + found + struct.pack("<I", 0) + behind


TURNED = (274, 3, 1, 6)
ODD_EXIF = {
    "a resolution below 0": (exif_data(TURNED, (282, 10, 1, struct.pack("<ii", -72, 1))), True),
    "a text that is a rational": (exif_data((270, 5, 1, struct.pack("<II", 1, 2)), TURNED), True),
    "an orientation that is a text": (exif_data((274, 2, 8, b"upright\0")), False),
    "EXIF data that are cut": (b"Exif\0\0II*\0", False),
    "no EXIF data at all": (b"Exif\0\0no such data", False),
}


@pytest.mark.parametrize("file_format", ["JPEG", "PNG"])
@pytest.mark.parametrize("case", ODD_EXIF)
def test_odd_exif_data(file_format, case):
    exif, is_turned = ODD_EXIF[case]
    plain = pixels.decode(saved(PICTURE, file_format))
    found = pixels.decode(saved(PICTURE, file_format, exif=exif))
    np.testing.assert_array_equal(found, np.rot90(plain, -1) if is_turned else plain)


def test_reasons_are_one_line_without_addresses():
    with pytest.raises(OSError, match="cannot identify") as caught:
        pixels.decode(b"no image")
    assert pixels.reason(caught.value) == "no image of a known format"
    assert pixels.reason(ValueError("two\n  lines")) == "two lines"
    assert pixels.reason(KeyError(274)) == "KeyError: 274"
    assert pixels.reason(EOFError()) == "EOFError"
