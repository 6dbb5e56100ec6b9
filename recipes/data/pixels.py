"""An image file as an array: turned upright, on white ground, with 8 bits a pixel."""

import io
import struct

import numpy as np
from PIL import ExifTags, Image, UnidentifiedImageError

# What EXIF's orientation asks for: swap rows and columns, then the step along each of them.
TURNS = {
    2: (False, 1, -1),
    3: (False, -1, -1),
    4: (False, -1, 1),
    5: (True, 1, 1),
    6: (True, 1, -1),
    7: (True, -1, -1),
    8: (True, -1, 1),
}
BITS, INTERPRETATION = 258, 262  # tags of TIFF; black is the highest value where the second is 0


def decode(content: bytes) -> np.ndarray:
    """Read the first picture in an image file.

    It is turned as its EXIF data say; one whose EXIF data cannot be read stays as it is stored.
    Transparency is laid over white. 16 bits (12 in TIFF) are scaled to 8 from their whole range,
    floats from [0, 1].

    Args:
        content: The bytes of the file.

    Returns:
        uint8, `(H, W)` if the file is grey, else `(H, W, 3)`.

    Raises:
        ValueError: If it is not known which values are black and white: floats beyond [0, 1],
            integers of 32 bits, or with a sign.
        Exception: Of any type, as Pillow raises it for damaged files.
    """
    with Image.open(io.BytesIO(content)) as image:
        image.load()
        array = _deep(image) if image.mode[0] in "IF" else _of_8_bits(image, content)
        swap, down, right = TURNS.get(_orientation(image), (False, 1, 1))
    return (array.swapaxes(0, 1) if swap else array)[::down, ::right]


def reason(error: Exception) -> str:
    """What an error says, in one line."""
    if isinstance(error, UnidentifiedImageError):
        return "no image of a known format"  # its message has an address in memory
    name, message = type(error).__name__, " ".join(str(error).split())
    if isinstance(error, OSError | ValueError):
        return message or name
    return f"{name}: {message}" if message else name


def _orientation(image: Image.Image) -> int:
    try:
        return image.getexif().get(ExifTags.Base.Orientation, 1)
    except (KeyError, SyntaxError, TypeError, ValueError, ZeroDivisionError, struct.error):
        return 1


def _deep(image: Image.Image) -> np.ndarray:
    """Grey pixels of more than 8 bits, scaled to 8."""
    values, tags = np.asarray(image), getattr(image, "tag_v2", {})
    if image.mode == "F":
        if not ((values >= 0) & (values <= 1)).all():
            raise ValueError(
                f"floats from {values.min():g} to {values.max():g}, not from 0 (black) to 1 (white)"
            )
        white: float = 1
    elif image.mode == "I" and image.format not in ("PNG", "PPM"):  # those two have 16 bits
        raise ValueError("integers of 32 bits or with a sign, of which black and white are unknown")
    else:
        white = 2 ** tags.get(BITS, (16,))[0] - 1
    scaled = np.rint(values * (255 / white)).astype("uint8")
    if tags.get(INTERPRETATION) == 0:
        scaled = 255 - scaled
    if "transparency" in image.info:
        scaled = np.where(values == image.info["transparency"], np.uint8(255), scaled)
    return scaled


def _of_8_bits(image: Image.Image, content: bytes) -> np.ndarray:
    # Pillow has no mode for grey of 16 bits with transparency, the colour type 4 of PNG.
    grey = image.mode in ("1", "L", "LA", "La") or (image.format == "PNG" and content[25] == 4)
    if not image.has_transparency_data:
        return np.asarray(image.convert("L" if grey else "RGB"))
    if image.mode == "La":
        image = image.convert("LA")
    values = np.asarray(image.convert("RGBA"), "uint16")
    alpha = values[..., 3:]
    colours = ((values[..., :3] * alpha + 255 * (255 - alpha) + 127) // 255).astype("uint8")
    return colours[..., 0] if grey else colours
