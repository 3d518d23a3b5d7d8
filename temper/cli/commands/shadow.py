"""`temper shadow`."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from contextlib import ExitStack
from datetime import UTC, datetime
from pathlib import Path
from typing import TypeVar

from temper.cli.inputs import Labels, open_labels
from temper.cli.pictures import Pictures
from temper.cli.target import say_kinds, say_share
from temper.client.client import Client
from temper.client.errors import ClientError
from temper.client.model import ModelInfo
from temper.client.shadow import Disagreement, ShadowResult, compare_versions
from temper.errors import TemperError
from temper.imaging.errors import show
from temper.progress import Display
from temper.report import write_shadow
from temper.report.measured import Paired, Share
from temper.report.shadowed import Shadow, ShadowAnswer, ShadowImage, ShadowSide
from temper.report.text import bounds, signed
from temper.serve.endpoint import Endpoint
from temper.serve.verify import VerifyError, staged_config
from temper.terminal import echo

Result = TypeVar("Result")
_PICTURES = "disagreements"


class ShadowError(TemperError):
    """The two versions cannot be compared, or the server failed."""


def shadow_command(
    model: str,
    *,
    versions: tuple[int, int],
    images: Path,
    labels: Path | None,
    url: str | None,
    repository: Path,
    out: Path | None,
    keep: int,
    as_json: bool,
) -> None:
    """Sends the images to both versions, keeps where they disagree, and prints how often.

    Raises:
        ShadowError: A version is not there, they have other classes, or the server failed.
        InputError: The images or the labels cannot be used.
    """
    folder = out or Path("runs") / f"{model.replace('/', '_')}-shadow"
    if url is None:
        _check_repository(repository, model, versions)
    with Display() as display, ExitStack() as stack:
        ends = _open(url, repository, model, versions, display, stack)
        pictures: Pictures | None = None
        try:
            info = _ask(ends, model, lambda urls: _describe(urls, model, versions, display))
            pictures = Pictures(images, info, display.say)
            truth = None if labels is None else open_labels(labels, len(pictures), info)
            folder.mkdir(parents=True, exist_ok=True)  # now, and not after an hour of requests
            result = _ask(ends, model, _measure(model, versions, pictures, truth, keep, display))
        except ClientError as error:
            raise ShadowError(
                ends[1].why(error) if ends[0] is ends[1] else ends[0].why(ends[1].why(error))
            ) from error
        except ValueError as error:
            if pictures is not None:
                pictures.say_failed()  # raises, when that is why
            raise ShadowError(str(error)) from error
        if failed := pictures.say_failed():
            display.say(f"{show(images)}: {failed}")
        found = _record(result, info, versions, pictures, truth, folder, ends[0].description)
    page = write_shadow(found, folder)
    echo(json.dumps(found.to_json(), indent=2, allow_nan=False) if as_json else _text(found, page))


def _open(
    url: str | None,
    repository: Path,
    model: str,
    versions: tuple[int, int],
    display: Display,
    stack: ExitStack,
) -> tuple[Endpoint, Endpoint]:
    """The server of each version: one for both, or two where the versions need another config.pbtxt each."""
    groups: list[tuple[int, ...]] = [versions]
    if url is None and _need_two(repository / model, versions):
        groups = [(versions[0],), (versions[1],)]
    ends = [
        stack.enter_context(Endpoint(url, repository, models=[model], versions={model: group}, display=display))
        for group in groups
    ]
    return ends[0], ends[-1]


def _need_two(place: Path, versions: tuple[int, int]) -> bool:
    try:
        staged_config(place, versions)
    except VerifyError:
        return True
    return False


def _ask(ends: tuple[Endpoint, Endpoint], model: str, ask: Callable[[tuple[str, str]], Result]) -> Result:
    """Asks both servers, and once again where one died."""
    first, second = ends
    return first.retrying(model, lambda one: second.retrying(model, lambda two: ask((one, two))))


def _measure(
    model: str,
    versions: tuple[int, int],
    pictures: Pictures,
    truth: Labels | None,
    keep: int,
    display: Display,
) -> Callable[[tuple[str, str]], ShadowResult]:
    first, second = map(str, versions)

    def measure(urls: tuple[str, str]) -> ShadowResult:
        with display.stage(f"{len(pictures):,} images to versions {first} and {second}") as stage:
            return compare_versions(
                urls,
                model,
                (first, second),
                pictures.read,
                len(pictures),
                labels=truth,
                keep=keep,
                progress=stage,
            )

    return measure


def _check_repository(repository: Path, model: str, versions: tuple[int, int]) -> None:
    """Refuses a version that is not there before a server is started; of other models the server speaks."""
    place = repository / model
    if not place.is_dir():
        return
    there = sorted(int(path.name) for path in place.iterdir() if path.name.isdecimal() and path.is_dir())
    if missing := [version for version in versions if version not in there]:
        known = ", ".join(map(str, there)) or "none"
        raise ShadowError(f"{show(place)}: has no version {missing[0]}, expected two of its versions: {known}")


def _describe(urls: tuple[str, str], model: str, versions: tuple[int, int], display: Display) -> ModelInfo:
    """What the server says of the second version, which images are prepared for.

    Raises:
        ShadowError: The two are not alike enough to answer the same requests.
        ClientError: A server does not answer, or does not serve its version.
    """
    first, second = (_info(url, model, version) for url, version in zip(urls, versions, strict=True))
    for one, two in (
        (f"{first.num_classes} classes", f"{second.num_classes} classes"),
        (f"an input of {list(first.image_shape)}", f"an input of {list(second.image_shape)}"),
    ):
        if one != two:
            raise ShadowError(
                f"model {show(model)}: version {versions[0]} has {one}, version {versions[1]} has {two}; expected "
                "the same of both, as they answer the same requests"
            )
    if first.labels != second.labels:
        display.say(f"{model}: the versions name their classes otherwise; they are compared by index")
    if first.preprocessing != second.preprocessing:
        display.say(f"{model}: the versions want images prepared otherwise; both get them as {versions[1]} wants")
    return second


def _info(url: str, model: str, version: int) -> ModelInfo:
    with Client(url) as client:
        return client.model_info(model, str(version))


def _record(
    result: ShadowResult,
    info: ModelInfo,
    versions: tuple[int, int],
    pictures: Pictures,
    truth: Labels | None,
    folder: Path,
    server: str,
) -> Shadow:
    """The result as shadow.json has it; writes the pictures."""
    shares = result.accuracy or (None, None)
    first, second = (
        ShadowSide(
            version=versions[side],
            accuracy=None if (share := shares[side]) is None else Share(**share),
            errors=result.errors[side],
            retries=result.retries[side],
        )
        for side in (0, 1)
    )
    place = folder / _PICTURES
    if place.is_dir():
        shutil.rmtree(place)  # of the time before
    place.mkdir()
    share = result.disagreement
    return Shadow(
        model=info.name,
        sides=(first, second),
        disagreement=Share(**share),
        difference=None if result.difference is None else Paired(**result.difference.to_json()),
        unreadable=len(pictures.failed),
        kept=tuple(
            _keep(number, one, info, pictures, truth, place) for number, one in enumerate(result.kept, start=1)
        ),
        num_disagreements=round(share["value"] * share["num_images"]),
        server=server,
        created=datetime.now(UTC).strftime("%Y-%m-%dT%H:%M:%SZ"),
    )


def _keep(
    number: int, one: Disagreement, info: ModelInfo, pictures: Pictures, truth: Labels | None, place: Path
) -> ShadowImage:
    from PIL import Image

    pixels, rows = pictures.read(one.index, one.index + 1)
    picture = f"{number:04d}-{one.index}.png" if len(rows) else None
    if picture is not None:
        Image.fromarray(pixels[0]).save(place / picture)
    first, second = (
        ShadowAnswer(
            index=None if answer < 0 else answer,
            label=None if answer < 0 else info.label(answer),
            confidence=sure,
        )
        for answer, sure in zip(one.classes, one.confidences, strict=True)
    )
    return ShadowImage(
        index=one.index,
        image=pictures.name(one.index),
        picture=None if picture is None else f"{_PICTURES}/{picture}",
        label=None if truth is None else info.label(int(truth[one.index])),
        answers=(first, second),
        difference=one.difference,
    )


def _text(found: Shadow, page: Path) -> str:
    share, (first, second) = found.disagreement, found.sides
    lines = [
        f"{show(found.model)}, version {first.version} against {second.version}, {share.num_images:,} images",
        f"disagree        {say_share(vars(share))}  {found.num_disagreements:,} images",
    ]
    for side in found.sides:
        if side.accuracy is not None:
            lines.append(f"accuracy of {side.version:<4}{say_share(vars(side.accuracy))}")
        if side.errors:
            lines.append(f"no score of {side.version:<4}{say_kinds(side.errors)} images, wrong")
        if side.retries:
            lines.append(f"sent again to {side.version}  {say_kinds(side.retries)} requests")
    if (paired := found.difference) is not None:
        lines += [
            f"difference      {signed(100 * paired.difference)} points "
            f"(95 % interval {bounds(paired.low, paired.high)})",
            f"right to wrong  {paired.num_only_first:,} images; wrong to right {paired.num_only_second:,}",
        ]
    kept = f"{len(found.kept):,} of {found.num_disagreements:,} disagreements, the most different first"
    return "\n".join([*lines, f"kept            {kept}: {show(page)}"])
