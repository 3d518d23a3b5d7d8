"""Encoded images at a real tritonserver: the client's pixels to the bit; what is no image fails alone."""

from __future__ import annotations

import asyncio
import io
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import AbstractContextManager
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt
import pytest
import tritonclient.grpc as triton  # type: ignore[import-untyped]  # ships none
from click.testing import CliRunner
from PIL import Image
from tritonclient.utils import InferenceServerException  # type: ignore[import-untyped]  # ships none

from temper.builder.publish.defence import BitDepthConfig, Defence
from temper.builder.publish.ensemble import publish_ensemble, publish_jpeg
from temper.builder.publish.entry import Entry, publish, publish_entry
from temper.builder.publish.triton_config import DecodeBackend, EnsembleBackend, PluginBackend, TritonConfig
from temper.cli.main import cli
from temper.client import AsyncClient, Client
from temper.client.errors import ClientError, InvalidRequest
from temper.client.images import load_image
from temper.client.load import LoadConfig, run_closed_loop, run_open_loop
from temper.imaging.preprocess import Preprocessing
from temper.serve.server import TritonServer
from temper.serve.verify import verify_repository

if TYPE_CHECKING:
    from benchmarks.sample import Sample

LABELS = [f"digit {digit}" for digit in range(10)]
COVERS = Preprocessing(height=32, width=32)
CONTRACTS = {
    "covers": COVERS,
    "torchvision": replace(COVERS, resize=36),
    "timm": replace(COVERS, resize=36, interpolation="bicubic"),
    "huggingface": replace(COVERS, resize=35, crop_margin="floor"),
    "squashes": Preprocessing(height=24, width=40, resize=(24, 40), upright=False),
    "opencv": replace(COVERS, resize=(32, 32), antialias=False),
    "opencv_nearest": replace(COVERS, resize=(32, 32), interpolation="nearest", antialias=False),
}
CONFIG = TritonConfig(
    name="toy",
    image_size=32,
    num_classes=10,
    max_batch=8,
    backend=PluginBackend(engine="openvino", on_cpu=True, parameters={"precision_hint": "f32"}),
    preprocessing=CONTRACTS["torchvision"],
    in_ensemble=True,
)


def picture(mode: str = "RGB") -> Image.Image:
    pixels = np.random.default_rng(1).integers(0, 256, (44, 50, 3), dtype=np.uint8)
    return Image.fromarray(pixels).convert(mode)


def _exif(orientation: int) -> Image.Exif:
    exif = Image.Exif()
    exif[0x0112] = orientation
    return exif


def _frames() -> dict[str, Any]:
    return {"save_all": True, "append_images": [picture().rotate(180)]}


GREY16 = Image.fromarray(np.random.default_rng(2).integers(0, 65536, (44, 50), dtype=np.uint16))
FILES: dict[str, Callable[[io.BytesIO], None]] = {
    "baseline.jpg": lambda file: picture().save(file, "JPEG"),
    "progressive.jpg": lambda file: picture().save(file, "JPEG", progressive=True, quality=95),
    "grey.jpg": lambda file: picture("L").save(file, "JPEG"),
    "cmyk.jpg": lambda file: picture("CMYK").save(file, "JPEG"),
    "turned.jpg": lambda file: picture().save(file, "JPEG", exif=_exif(6)),
    "two.jpg": lambda file: picture().save(file, "MPO", **_frames()),
    "rgb.png": lambda file: picture().save(file, "PNG"),
    "grey16.png": lambda file: GREY16.save(file, "PNG"),
    "rgba.png": lambda file: picture("RGBA").save(file, "PNG"),
    "palette.png": lambda file: picture().quantize(16).save(file, "PNG", transparency=3),
    "lossy.webp": lambda file: picture().save(file, "WEBP"),
    "animated.webp": lambda file: picture().save(file, "WEBP", **_frames()),
    "animated.gif": lambda file: picture().save(file, "GIF", **_frames()),
    "pages.tif": lambda file: picture().save(file, "TIFF", compression="tiff_lzw", **_frames()),
    "rgb.bmp": lambda file: picture().save(file, "BMP"),
    "rgb.ppm": lambda file: picture().save(file, "PPM"),
}
GOOD = tuple(FILES)[0]


def write(name: str) -> bytes:
    file = io.BytesIO()
    FILES[name](file)
    return file.getvalue()


def bomb() -> bytes:
    """54 bytes that say that they are 14 gigabytes."""
    file = io.BytesIO()
    Image.new("RGB", (1, 1)).save(file, "BMP")
    return file.getvalue()[:18] + (60_000).to_bytes(4, "little") * 2 + file.getvalue()[26:54]


BAD: dict[str, tuple[bytes, str]] = {
    "empty": (b"", "image: is empty, expected PNG, JPEG, BMP, WebP, TIFF, PPM or GIF"),
    "text": (b"some text", "image: is text, expected PNG, JPEG"),
    "program": (b"\x7fELF" + bytes(100), "image: is a program, expected"),
    "cut off": (write("baseline.jpg")[:500], r"image: cannot be decoded \(.*\), expected a whole image file"),
    "bomb": (bomb(), "image: is too large: 3,600,000,000 pixels, expected at most 33,554,432 pixels"),
}


@pytest.fixture(scope="module")
def repository(toy_onnx: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model with its twin that takes files, a defended one with its own, and a decoder of every contract."""
    root = tmp_path_factory.mktemp("decode") / "repository"
    publish(root, CONFIG, engine_file=toy_onnx, labels=LABELS, card={})
    publish_jpeg(root, CONFIG, labels=LABELS, card={})
    squeeze = (Defence(bit_depth=BitDepthConfig(bits=3)),)
    defended = replace(CONFIG, name="squeezed", backend=EnsembleBackend(members=("toy",), defend=squeeze))
    publish_ensemble(root, defended, labels=LABELS, card={})
    publish_jpeg(root, defended, labels=LABELS, card={})
    for name, how in CONTRACTS.items():
        size = (how.height, how.width)
        config = replace(CONFIG, name=name, image_size=size, preprocessing=how, backend=DecodeBackend())
        publish_entry(root, Entry(plans=(), labels=b"", card={}, config=config))
    return root


@pytest.fixture(scope="module")
def served(
    request: pytest.FixtureRequest,
    share_server: Callable[..., AbstractContextManager[TritonServer]],
    repository: Path,
) -> Iterator[TritonServer]:
    """All of them."""
    with share_server(request, TritonServer(repository)) as running:
        yield running


def decode(server: TritonServer, model: str, files: list[bytes]) -> npt.NDArray[np.uint8]:
    """What a decoder makes of files, in one request."""
    tensor = triton.InferInput("encoded", [len(files), 1], "BYTES")
    tensor.set_data_from_numpy(np.array(files, dtype=object)[:, None])
    with triton.InferenceServerClient(server.grpc_url) as raw:
        pixels: npt.NDArray[np.uint8] = raw.infer(model, [tensor]).as_numpy("image")
    return pixels


@pytest.mark.server
@pytest.mark.parametrize("contract", CONTRACTS)
def test_pixels_are_those_that_the_client_would_send(served: TritonServer, tmp_path: Path, contract: str) -> None:
    with Client(served.grpc_url) as client:
        info = client.model_info("toy")
    how = CONTRACTS[contract]
    info = replace(info, image_shape=(how.height, how.width, 3), preprocessing=how)
    names = list(FILES)
    for some in (names[:8], names[8:]):
        found = decode(served, contract, [write(name) for name in some])
        for name, pixels in zip(some, found, strict=True):
            (tmp_path / name).write_bytes(write(name))
            np.testing.assert_array_equal(pixels, load_image(tmp_path / name, info), err_msg=name)
    assert len(names) == 16


@pytest.mark.server
@pytest.mark.parametrize("model", ["toy", "squeezed"])
def test_answers_are_those_to_the_pixels(served: TritonServer, tmp_path: Path, model: str) -> None:
    files = [write(name) for name in FILES]  # of which a request takes half
    with Client(served.grpc_url) as client:
        info, pixels = client.model_info(f"{model}_jpeg"), client.model_info(model)
        for name, file in zip(FILES, files, strict=True):
            (tmp_path / name).write_bytes(file)
        images = np.stack([load_image(tmp_path / name, pixels) for name in FILES])
        expected, found = client.infer(model, images), client.infer_encoded(f"{model}_jpeg", files)
        one = client.infer_encoded(f"{model}_jpeg", files[:1])
    assert (info.takes_encoded, info.image_shape, info.max_batch_size) == (True, (1,), 8)
    assert list(info.labels) == LABELS
    assert info.preprocessing == CONTRACTS["torchvision"]
    np.testing.assert_allclose(found, expected, rtol=0, atol=1e-4)
    np.testing.assert_allclose(one, expected[:1], rtol=0, atol=1e-4)
    assert np.ptp(expected, axis=0).max() > 1e-2, "answers that are all one prove nothing"


@pytest.mark.server
def test_asynchronous_client_sends_files_too(served: TritonServer) -> None:
    async def ask() -> npt.NDArray[np.float32]:
        async with AsyncClient(served.grpc_url) as client:
            return await client.infer_encoded("toy_jpeg", [write(GOOD)])

    with Client(served.grpc_url) as client:
        expected = client.infer_encoded("toy_jpeg", [write(GOOD)])
    np.testing.assert_allclose(asyncio.run(ask()), expected, rtol=0, atol=1e-5)


@pytest.mark.server
@pytest.mark.parametrize("name", BAD)
def test_what_is_no_image_fails_its_own_request_alone(served: TritonServer, name: str) -> None:
    file, message = BAD[name]
    with Client(served.grpc_url) as client, ThreadPoolExecutor(16) as pool:
        expected = client.infer_encoded("toy_jpeg", [write(GOOD)])
        with pytest.raises(InvalidRequest, match=message) as caught:
            client.infer_encoded("toy_jpeg", [file])
        assert caught.value.code == "INVALID_ARGUMENT"
        with pytest.raises(InvalidRequest, match=f"row 2: {message}"):
            client.infer_encoded("toy_jpeg", [write(GOOD), write(GOOD), file])

        def ask(number: int) -> Any:
            try:
                return client.infer_encoded("toy_jpeg", [file if number % 3 == 0 else write(GOOD)])
            except ClientError as error:
                return error

        for number, answer in enumerate(pool.map(ask, range(48))):
            if number % 3 == 0:
                assert isinstance(answer, InvalidRequest), answer
            else:
                np.testing.assert_allclose(answer, expected, rtol=0, atol=1e-4)
        assert client.server_ready()


@pytest.mark.server
def test_requests_of_other_shapes_are_refused(served: TritonServer) -> None:
    """By Triton itself, before anything is decoded."""
    with pytest.raises(InferenceServerException, match="batch-size must be <= 8"):
        decode(served, "covers", [write(GOOD)] * 9)
    with triton.InferenceServerClient(served.grpc_url) as raw:
        for shape, message in (
            ([0, 1], "expected 1 string elements"),
            ([1, 2], r"Expected \[-1,1\], got \[1,2\]"),
        ):
            tensor = triton.InferInput("encoded", shape, "BYTES")
            tensor.set_data_from_numpy(np.full(shape, write(GOOD), dtype=object))
            with pytest.raises(InferenceServerException, match=message):
                raw.infer("toy_jpeg", [tensor])
        assert raw.is_server_ready()


@pytest.mark.server
def test_calls_that_do_not_fit_are_refused_before_anything_is_sent(served: TritonServer, sample: Sample) -> None:
    with Client(served.grpc_url) as client:
        with pytest.raises(InvalidRequest, match="model toy takes UINT8 .*, expected one that takes image files"):
            client.infer_encoded("toy", [write(GOOD)])
        with pytest.raises(
            InvalidRequest, match="got pixels, model toy_jpeg takes image files; use infer_encoded"
        ):
            client.infer("toy_jpeg", sample.images[:1])
        with pytest.raises(InvalidRequest, match="files: got none, expected at least one"):
            client.infer_encoded("toy_jpeg", [])
        with pytest.raises(InvalidRequest, match="files: got str, expected the bytes of an image file each"):
            client.infer_encoded("toy_jpeg", ["photo.jpg"])  # type: ignore[list-item]
        with pytest.raises(InvalidRequest, match="toy_jpeg: takes image files as they are, .*; ask toy$"):
            load_image(Path("photo.jpg"), client.model_info("toy_jpeg"))


@pytest.mark.server
def test_load_is_measured_on_files(served: TritonServer) -> None:
    files = [write(name) for name in FILES]
    config = LoadConfig(duration_s=0.5, warmup_s=0.1, batch_size=2)
    closed = run_closed_loop(served.grpc_url, "toy_jpeg", files, concurrency=4, config=config)
    opened = run_open_loop(served.grpc_url, "toy_jpeg", files, rate_rps=20, config=config)
    for result in (closed, opened):
        assert (result.errors, result.shed, result.interrupted) == ({}, 0, None)
        assert result.throughput_ips > 0


@pytest.mark.server
def test_commands_send_files_to_what_takes_them(served: TritonServer, tmp_path: Path) -> None:
    (tmp_path / "good.jpg").write_bytes(write(GOOD))
    (tmp_path / "bad.jpg").write_bytes(b"some text")

    def run(*words: str) -> tuple[int, str]:
        result = CliRunner().invoke(cli, [*words, "--url", served.grpc_url])
        return result.exit_code, result.output

    images, good = str(tmp_path), str(tmp_path / "good.jpg")
    expected = run("query", good, "--model", "toy")
    assert expected[0] == 0
    assert run("query", good, "--model", "toy_jpeg") == expected
    code, output = run("query", images, "--model", "toy_jpeg")
    assert code == 1
    assert f"{tmp_path / 'bad.jpg'}: " in output
    assert "image: is text, expected PNG" in output
    assert expected[1].strip() in output
    short = ("--duration", "3", "--warmup", "0.1", "--concurrency", "2")
    for model in ("toy", "toy_jpeg"):
        code, output = run("load", "--model", model, "--encoded", "--images", good, *short)
        assert (code, "closed, 2 in flight" in output) == (0, True), output
    code, output = run("load", "--model", "toy", "--encoded", *short)
    assert (code, "--encoded: sends image files, expected --images with some" in output) == (2, True)
    code, output = run("load", "--model", "toy_jpeg", *short)
    assert (code, "toy_jpeg: takes image files, expected --images with some" in output) == (1, True)
    code, output = run("load", "--model", "toy", "--encoded", "--images", str(tmp_path / "bad.jpg"), *short)
    assert (code, "INVALID_ARGUMENT (" in output, "image: is text, expected PNG" in output) == (1, True, True)
    (tmp_path / "classes" / LABELS[0]).mkdir(parents=True)
    (tmp_path / "classes" / LABELS[0] / "good.jpg").write_bytes(write(GOOD))
    for folder, words in ((images, ("attack", "--images")), (str(tmp_path / "classes"), ("corrupt",))):
        code, output = run(*words, folder, "--model", "toy_jpeg")
        assert code == 1
        said = "error: model toy_jpeg: takes image files as they are, expected one that takes pixels"
        assert output.splitlines()[-1].startswith(said) and output.endswith("; ask toy\n")


def test_everything_that_was_published_is_verified(repository: Path) -> None:
    verdicts = {one.model: one for one in verify_repository(repository)}
    assert {verdicts[name].backend for name in ("toy_jpeg_decode", "covers")} == {"temper_decode"}
    assert verdicts["squeezed_jpeg"].backend == "ensemble"
    assert [one.reason for one in verdicts.values()] == [None] * len(verdicts)
