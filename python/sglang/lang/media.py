"""Images and videos of a program as the text that travels to a backend: base64 of what they are encoded as."""

import base64
import io
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

VIDEO = "video:"  # before the frames of a video
_MIME = {"/9j": "jpeg", "iVBOR": "png", "R0lGOD": "gif", "UklGR": "webp"}  # how base64 of each format begins


def encode_image(source: Any) -> str:
    """A path (read as it is), encoded bytes, or a PIL image (as PNG), as base64."""
    if isinstance(source, str | Path):
        return base64.b64encode(Path(source).read_bytes()).decode()
    if isinstance(source, bytes | bytearray):
        return base64.b64encode(source).decode()
    if hasattr(source, "save"):
        return base64.b64encode(_png(source)).decode()
    raise TypeError(f"image must be a path, bytes or a PIL image, got {type(source).__name__}")


def data_url(data: str) -> str:
    """base64 as a data: URL, its type told from how it begins."""
    if data.startswith(VIDEO):
        return f"data:video/png-frames;base64,{data.removeprefix(VIDEO)}"
    kind = next((kind for start, kind in _MIME.items() if data.startswith(start)), "jpeg")
    return f"data:image/{kind};base64,{data}"


def encode_video(path: str, count: int) -> str:
    """`count` frames from the first to the last, evenly spaced, as PNGs one after another; a file with fewer repeats
    its last. Animated images are read with Pillow, anything else with PyAV."""
    if count < 1:
        raise ValueError(f"num_frames must be at least 1, got {count}")
    total = sum(1 for _ in _frames(path))  # read twice: all frames at once may be gigabytes
    if total == 0:
        raise ValueError(f"no frames in {path}")
    if total <= count:
        wanted = [min(i, total - 1) for i in range(count)]
    else:
        wanted = [round(i * (total - 1) / max(count - 1, 1)) for i in range(count)]
    pngs = {i: _png(picture()) for i, picture in enumerate(_frames(path)) if i in wanted}
    return VIDEO + base64.b64encode(b"".join(pngs[i] for i in wanted)).decode()


def _frames(path: str) -> Iterator[Callable[[], Any]]:
    """For each frame, in order, what makes a picture of it, until the next is asked for."""
    try:
        from PIL import Image, ImageSequence, UnidentifiedImageError
    except ImportError:
        raise RuntimeError("video needs Pillow: pip install pillow") from None
    try:
        with Image.open(path) as image:
            for frame in ImageSequence.Iterator(image):
                yield lambda frame=frame: frame.convert("RGB")
        return
    except UnidentifiedImageError:
        pass
    try:
        import av  # pyright: ignore[reportMissingImports]  # an extra
    except ImportError:
        raise RuntimeError(f"{path} is not an animated image; other videos need PyAV: pip install av") from None
    with av.open(path) as container:
        for frame in container.decode(video=0):
            yield frame.to_image


def _png(image: Any) -> bytes:
    out = io.BytesIO()
    image.save(out, format="PNG")
    return out.getvalue()
