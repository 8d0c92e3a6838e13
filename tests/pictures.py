"""Pictures of every mode and format, and what Pillow makes of them: what images are compared with."""

from __future__ import annotations

import io

import numpy as np
from PIL import Image

# mode -> formats that keep it
FORMATS = {
    "1": ("PNG", "TIFF", "BMP", "PPM"),
    "L": ("PNG", "JPEG", "TIFF", "BMP", "GIF", "PPM"),
    "LA": ("PNG", "TIFF"),
    "P": ("PNG", "TIFF", "BMP", "GIF"),
    "RGB": ("PNG", "JPEG", "TIFF", "BMP", "WEBP", "PPM"),
    "RGBA": ("PNG", "TIFF", "WEBP"),
    "CMYK": ("JPEG", "TIFF"),
    "I;16": ("PNG", "TIFF", "PPM"),
}
KINDS = [(mode, format) for mode, formats in FORMATS.items() for format in formats]


def picture(mode: str, seed: int = 0, size: tuple[int, int] = (7, 5)) -> Image.Image:
    """Make a picture of a mode; ``size`` is width and height."""
    rng = np.random.default_rng(seed)
    width, height = size
    if mode == "I;16":
        return Image.fromarray(rng.integers(0, 65_536, (height, width), dtype=np.uint16))
    bands = {"1": 1, "L": 1, "LA": 2, "P": 3, "RGB": 3, "RGBA": 4, "CMYK": 4}[mode]
    pixels = rng.integers(0, 256, (height, width, bands), dtype=np.uint8)
    if mode in ("1", "L"):
        return Image.fromarray(pixels[..., 0]).convert(mode)
    if mode == "P":
        return Image.fromarray(pixels).quantize(16)
    return Image.frombytes(mode, size, pixels.tobytes())


def written(image: Image.Image, format: str, **options: object) -> bytes:
    """Compress a picture."""
    file = io.BytesIO()
    image.save(file, format, **({"lossless": True} if format == "WEBP" else {}), **options)
    return file.getvalue()


def expected(data: bytes) -> np.ndarray:
    """Pixels of a compressed picture as Pillow has them, grey or colour: shape (channels, height, width)."""
    with Image.open(io.BytesIO(data)) as image:
        if image.mode.startswith("I"):  # 16 bits
            return (np.asarray(image).astype(int) >> 8).astype(np.uint8)[None]
        if image.mode in ("1", "L", "LA"):
            return np.asarray(image.convert("L"))[None]
        return np.asarray(image.convert("RGB")).transpose(2, 0, 1)
