"""Images and videos as text."""

import base64
import io
from pathlib import Path

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
