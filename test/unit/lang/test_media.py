"""Images and videos as text."""

import base64
import io
import sys
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType

import pytest
from PIL import Image

from sglang.lang.media import data_url, encode_image, encode_video


def picture(color: int) -> Image.Image:
    return Image.new("RGB", (4, 4), (color, 0, 0))


def test_an_image_from_a_file_from_bytes_and_from_pil(tmp_path: Path) -> None:
    picture(9).save(tmp_path / "x.jpg")
    data = (tmp_path / "x.jpg").read_bytes()
    assert encode_image(str(tmp_path / "x.jpg")) == encode_image(data) == base64.b64encode(data).decode()
    assert data_url(encode_image(data)).startswith("data:image/jpeg;base64,/9j/")
    encoded = encode_image(picture(9))
    assert data_url(encoded).startswith("data:image/png;base64,")
    assert Image.open(io.BytesIO(base64.b64decode(encoded))).getpixel((0, 0)) == (9, 0, 0)
    with pytest.raises(TypeError, match="int"):
        encode_image(3)


@pytest.mark.parametrize(
    ("count", "seen"), [(1, [0]), (2, [0, 200]), (3, [0, 100, 200]), (7, [0, 50, 100, 150, 200, 200, 200])]
)
def test_frames_are_evenly_spaced_and_the_last_repeats(tmp_path: Path, count: int, seen: list[int]) -> None:
    frames = [picture(i * 50) for i in range(5)]
    frames[0].save(tmp_path / "x.webp", save_all=True, append_images=frames[1:], duration=40, lossless=True)
    video = encode_video(str(tmp_path / "x.webp"), count)
    pngs = base64.b64decode(video.removeprefix("video:")).split(b"\x89PNG")[1:]
    assert [Image.open(io.BytesIO(b"\x89PNG" + png)).getpixel((0, 0)) for png in pngs] == [(c, 0, 0) for c in seen]


def test_what_is_no_video_says_so(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="at least 1"):
        encode_video("x", 0)
    with pytest.raises(FileNotFoundError):
        encode_video(str(tmp_path / "none.mp4"), 1)


def test_a_video_is_read_frame_by_frame(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Through PyAV's interface: an optional package that is not here."""
    (tmp_path / "x.mp4").write_bytes(b"no image")
    monkeypatch.setitem(sys.modules, "av", None)  # what an import of an absent package finds
    with pytest.raises(RuntimeError, match="pip install av"):
        encode_video(str(tmp_path / "x.mp4"), 2)
    alive: list[int] = []

    class Frame:
        def __init__(self, i: int):
            self.i = i

        def to_image(self) -> Image.Image:
            alive.append(self.i)
            return picture(self.i)

    class Container:
        def __enter__(self) -> "Container":
            return self

        def __exit__(self, *_: object) -> None: ...

        def decode(self, video: int) -> Iterator[Frame]:
            return map(Frame, range(100))

    av = ModuleType("av")
    av.open = lambda path: Container()  # type: ignore[attr-defined]  # a module made here
    monkeypatch.setitem(sys.modules, "av", av)
    video = encode_video(str(tmp_path / "x.mp4"), 3)
    assert alive == [0, 50, 99], "only the frames that are sent become pictures"
    assert base64.b64decode(video.removeprefix("video:")).count(b"\x89PNG") == 3
