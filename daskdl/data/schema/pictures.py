"""Compressed pictures as pixels: what Pillow reads of them, as grey or red, green, blue of eight bits."""

from __future__ import annotations

import io
from typing import Any

import numpy as np
import numpy.typing as npt
from PIL import Image as Pillow
from PIL import UnidentifiedImageError

from daskdl.errors import DataError

Pixels = npt.NDArray[np.uint8]

FORMATS = ("PNG", "JPEG", "WEBP", "TIFF", "BMP", "GIF", "PPM")
ENDINGS = (".png", ".jpg", ".jpeg", ".jpe", ".jfif", ".webp", ".tif", ".tiff", ".bmp", ".gif", ".ppm", ".pgm", ".pbm")
SIXTEEN = ("I;16", "I;16L", "I;16B", "I;16N")
GREY = ("1", "L", "LA", *SIXTEEN)
COLOUR = ("P", "PA", "RGB", "RGBA", "RGBX", "CMYK", "YCbCr", "HSV")
PNG, JPEG = b"\x89PNG\r\n\x1a\n", b"\xff\xd8\xff"
BEGINNINGS = (PNG, JPEG, b"RIFF", b"GIF8", b"II*\0", b"MM\0*")  # of files that are certainly meant to be images
PNG_END, JPEG_END = b"IEND\xaeB`\x82", b"\xff\xd9"


def image_shape(data: bytes) -> tuple[int, int, int]:
    """Read (channels, height, width) from the head of a picture; channels are 1 for a grey one, else 3.

    Raises
    ------
    DataError
        The bytes are no picture that can be read.

    Examples
    --------
    >>> from daskdl.data.schema.codecs import encode_images
    >>> image_shape(encode_images(np.zeros((1, 8, 6, 3), dtype=np.uint8))[0].as_py())
    (3, 8, 6)
    """
    with opened(data) as image:
        return 1 if _is_grey(image) else 3, image.height, image.width


def decode_image(data: bytes, height: int, width: int, channels: int = 3) -> Pixels:
    """Decode a picture to a size: shape (channels, height, width).

    An alpha channel is left out, of several frames or pages the first is taken, and a rotation that is noted in EXIF
    is not applied (torchvision does the same). Of 16 bits the higher eight are kept, in grey as in colour. A JPEG is
    decoded at the smallest of its built-in scales that is large enough, then resized (bilinear).

    Raises
    ------
    DataError
        The bytes are no picture that can be read, or are cut off.

    Examples
    --------
    >>> from daskdl.data.schema.codecs import encode_images
    >>> data = encode_images(np.full((1, 8, 6, 3), 9, dtype=np.uint8))[0].as_py()
    >>> decode_image(data, 4, 3).shape
    (3, 4, 3)
    """
    with opened(data) as image:
        image.draft("RGB", (width, height))  # a smaller scale, if the format has one; the mode stays
        found = _loaded(data, image)
        found = eight_bits(found, "L" if channels == 1 else "RGB")
        if found.size != (width, height):
            found = found.resize((width, height), Pillow.Resampling.BILINEAR)
        pixels = np.asarray(found)
    return pixels[None] if channels == 1 else pixels.transpose(2, 0, 1)


def check_whole(data: bytes) -> None:
    """Refuse a picture whose data is cut off: one that does not end as its format ends is decoded to see.

    Raises
    ------
    DataError
        It cannot be decoded.
    """
    if not _ends_well(data):
        with opened(data) as image:
            _loaded(data, image)


def _ends_well(data: bytes) -> bool:
    if data.startswith(PNG):
        return data.endswith(PNG_END)
    if data.startswith(JPEG):
        return data.endswith(JPEG_END)
    if data.startswith(b"RIFF"):  # WebP says how long it is
        return len(data) >= int.from_bytes(data[4:8], "little") + 8
    return False


def eight_bits(image: Pillow.Image, mode: str = "") -> Pillow.Image:
    """Return an open picture in a mode of eight bits: ``"L"`` or ``"RGB"``, by default the one it is nearer to."""
    mode = mode or ("L" if _is_grey(image) else "RGB")
    if image.mode in SIXTEEN or image.mode == "I":  # Pillow would cut off what is above 255
        image = Pillow.fromarray((np.asarray(image).astype(np.int64) >> 8).clip(0, 255).astype(np.uint8))
    return image if image.mode == mode else image.convert(mode)


def _is_grey(image: Pillow.Image) -> bool:
    """Whether a picture is grey; one that is neither that nor colour is refused."""
    if image.mode in GREY or (image.mode == "I" and image.format in ("PNG", "PPM")):  # these hold 16 bits
        return True
    if image.mode in COLOUR:
        return False
    raise DataError(
        f"a picture of {image.width} x {image.height} has values that no white is known of (mode {image.mode!r} of "
        "Pillow), so it cannot be brought to 0..255. Scale it yourself and save it with 8 or 16 bits, or give it as an "
        "array: numpy.asarray(PIL.Image.open(file))."
    )


def _loaded(data: bytes, image: Pillow.Image) -> Pillow.Image:
    try:
        image.load()
    except Exception as error:  # of any class: a broken file misleads every decoder in its own way
        raise DataError(
            f"an image of {len(data):,} bytes cannot be decoded: {_words(error)}. It may be cut off: repair it, or "
            "leave it out."
        ) from error
    return image


def opened(data: bytes) -> Any:
    """Open a picture; its pixels are not read yet.

    Raises
    ------
    DataError
        The bytes are no picture of a known format.
    """
    if not data:
        raise DataError("an image of 0 bytes is empty. Write it again, or leave it out.")
    try:
        image = Pillow.open(io.BytesIO(data), formats=FORMATS)
        _is_grey(image)
        return image
    except DataError:
        raise
    except UnidentifiedImageError as error:
        if data.startswith(BEGINNINGS):
            raise _broken_head(data, "it is cut off or damaged") from error
        raise DataError(
            f"{len(data):,} bytes that begin with {data[:8]!r} are none of {', '.join(FORMATS)}, so they are read as "
            "no image. Save the image as one of these, or leave it out; other bytes are no feature."
        ) from None
    except Exception as error:
        raise _broken_head(data, _words(error)) from error


def _broken_head(data: bytes, what: str) -> DataError:
    return DataError(f"an image of {len(data):,} bytes has a broken head: {what}. Repair it, or leave it out.")


def _words(error: Exception) -> str:
    return " ".join(str(error).split()) or type(error).__name__
