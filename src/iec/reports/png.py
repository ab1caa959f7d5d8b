"""What a page needs to know of a PNG file's bytes."""

import base64
import struct

_SIGNATURE = b"\x89PNG\r\n\x1a\n"


def png_size(png: bytes, name: str) -> tuple[int, int]:
    """Width and height in pixels. Raises ValueError, with the picture's name, for bytes that are no PNG file."""
    if not png.startswith(_SIGNATURE) or len(png) < 24:
        raise ValueError(f"The picture '{name}' is not a PNG file.")
    width, height = struct.unpack(">II", png[16:24])
    return width, height


def data_uri(png: bytes) -> str:
    """The file as an address that holds all of it."""
    return f"data:image/png;base64,{base64.b64encode(png).decode('ascii')}"
