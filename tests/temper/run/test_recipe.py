"""Every mistake in a recipe is answered with the key's full path, what came, and what is allowed.

Long because it is one table of mistakes, which is easier to read in one place.
"""

from __future__ import annotations

import inspect
import re
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from temper.client.robustness.base import ATTACKS
from temper.errors import RecipeError
from temper.plugins import PluginError
from temper.run.recipe import Recipe, load_recipe

ROOT = Path(__file__).parents[3]
RECIPES = sorted(path.stem for path in (ROOT / "recipes").glob("*.toml"))
OURS = ", ".join(f'"{name}"' for name in ATTACKS.names())
GOOD = """
name = "x"
[data]
source = "digits"
image_size = 32
[[variants]]
name = "fp32"
[[variants]]
name = "int8"
compress = [{ quantize = { precision = "int8", method = "entropy" } }]
[engine]
kind = "auto"
[[attacks]]
name = "square"
epsilon = 8
"""


def write(folder: Path, text: str) -> Path:
    path = folder / "x.toml"
    path.write_text(text)
    return path


def read_error(folder: Path, text: str) -> list[str]:
    """The lines of the error, without the file that each begins with."""
    path = write(folder, text)
    with pytest.raises(RecipeError) as caught:
        load_recipe(path)
    lines = str(caught.value).splitlines()
    assert all(line.startswith(f"{path}: ") for line in lines)
    return [line.removeprefix(f"{path}: ") for line in lines]


def test_load_recipe_good(tmp_path: Path) -> None:
    recipe = load_recipe(write(tmp_path, GOOD))
    assert isinstance(recipe, Recipe)
    assert [variant.name for variant in recipe.variants] == ["fp32", "int8"]
    assert recipe.variants[1].compress[0].name == "quantize"
    assert recipe.attacks[0].epsilon == 8.0
    assert recipe.train.epochs > 0


@pytest.mark.parametrize("name", RECIPES)
def test_load_recipe_of_ours(name: str) -> None:
    assert {"digits", "photos"} <= set(RECIPES)
    recipe = load_recipe(ROOT / "recipes" / f"{name}.toml")
    assert recipe.name == name


@pytest.mark.parametrize("name", ["Imagenette", "Flowers102", "OxfordIIITPet", "Food101", "DTD"])
def test_load_recipe_of_the_page_on_photographs(tmp_path: Path, name: str) -> None:
    """And what it names is in torchvision: a data set that it downloads, weights tested at that resize."""
    import torchvision  # type: ignore[import-untyped]  # ships none

    text = (ROOT / "docs" / "photos.md").read_text()
    (block,) = re.findall(r"```toml\n(.*?)```", text, re.DOTALL)
    assert f'"{name}"' in block
    recipe = load_recipe(write(tmp_path, block.replace('name = "Imagenette"', f'name = "{name}"')))
    assert recipe.data.name == name
    arguments = inspect.signature(getattr(torchvision.datasets, name)).parameters
    assert {"root", "split", "download"} <= set(arguments)
    assert recipe.model.weights == "torchvision"
    tested = torchvision.models.get_model_weights(recipe.model.arch)["DEFAULT"].transforms()
    how = recipe.data.preprocessing
    assert [how.resize] == tested.resize_size
    assert [how.height] == [how.width] == tested.crop_size
    assert (how.interpolation, how.antialias) == (tested.interpolation.value, tested.antialias)
    assert (list(how.mean), list(how.std)) == (tested.mean, tested.std)


def test_load_recipe_imports_nothing_heavy() -> None:
    """No gRPC, no torch: a mistake in a recipe is answered at once. The attacks' own code brings numpy."""
    root = Path(__file__).parents[3]
    code = (
        "import sys\nfrom pathlib import Path\nfrom temper.run.recipe import load_recipe\n"
        "load_recipe(Path('recipes/compression.toml'))\n"
        "heavy = ('grpc', 'tritonclient', 'torch', 'torchvision', 'onnx', 'openvino', 'modelopt', 'PIL', 'rich')\n"
        "print([name for name in heavy if name in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=root)
    assert done.stdout == "[]\n", done.stderr


# The text to replace in GOOD, what comes instead, and the line that answers it.
MISTAKES = {
    "wrong type": (
        "epsilon = 8",
        'epsilon = "8"',
        'attacks[0].epsilon: got "8", expected a number',
    ),
    "string for an integer": (
        "image_size = 32",
        'image_size = "32"',
        'data.image_size: got "32", expected an integer',
    ),
    "fraction for an integer": (
        "image_size = 32",
        "image_size = 32.0",
        "data.image_size: got 32.0, expected an integer",
    ),
    "boolean for an integer": (
        "image_size = 32",
        "image_size = true",
        "data.image_size: got true, expected an integer",
    ),
    "out of range": (
        "image_size = 32",
        "image_size = 8",
        "data.image_size: got 8, expected 32 to 1024 pixels",
    ),
    "unknown choice": (
        'kind = "auto"',
        'kind = "foo"',
        'engine.kind: got "foo", expected one of "auto", "openvino", "tensorrt-rtx"',
    ),
    "unknown choice, deep": (
        '"entropy"',
        '"percentile"',
        'variants[1].compress[0].quantize.method: got "percentile", expected one of "entropy", "max"',
    ),
    "training in fp8": (
        'precision = "int8", method = "entropy"',
        'precision = "fp8", method = "qat"',
        "variants[1].compress[0].quantize.precision: got fp8 with method 'qat', expected int8",
    ),
    "training with a budget": (
        'method = "entropy"',
        'method = "qat", max_loss = 0.5',
        "variants[1].compress[0].quantize.max_loss: got it with method 'qat', which trains every layer",
    ),
    "epochs without training": (
        'method = "entropy"',
        'method = "entropy", epochs = 3',
        "variants[1].compress[0].quantize.epochs: got 3 with method 'entropy', which does not train; expected it",
    ),
    "no epochs of training": (
        'method = "entropy"',
        'method = "qat", epochs = 0',
        "variants[1].compress[0].quantize.epochs: got 0, expected at least 1",
    ),
    "ensemble of what is not there": (
        "[engine]",
        '[[variants]]\nname = "both"\nensemble = ["fp32", "fp16"]\n[engine]',
        'variants[2].ensemble: got "fp16", expected variants above it that are no ensembles themselves: '
        '"fp32", "int8"',
    ),
    "ensemble whose last step has a variant's name": (
        "[engine]",
        '[[variants]]\nname = "both"\nensemble = ["fp32", "int8"]\n[[variants]]\nname = "both_mean"\n[engine]',
        'variants[3].name: got "both_mean", expected another name: it is that of the last step of the ensemble',
    ),
    "variant called as the twin of another": (
        "[engine]",
        '[[variants]]\nname = "int8_jpeg"\n[serving]\njpeg = true\n[engine]',
        'variants[2].name: got "int8_jpeg", expected another name: it is that of what takes image files for '
        "variants[1]",
    ),
    "variant called as the decoder of another": (
        "[engine]",
        '[[variants]]\nname = "fp32_jpeg_decode"\n[serving]\njpeg = true\n[engine]',
        'variants[2].name: got "fp32_jpeg_decode", expected another name: it is that of what decodes for '
        "variants[0]",
    ),
    "queue bounded by number before a twin": (
        "[engine]",
        "[serving]\nmax_queue = 7\njpeg = true\n[engine]",
        "serving.max_queue: got 7 with jpeg = true, which bounds queues by time alone; leave it out and set ",
    ),
    "defence before nothing": (
        'name = "int8"',
        'name = "int8"\ndefend = [{ jpeg = { quality = 75 } }]',
        "variants[1].defend: got it without ensemble, expected the variant that it stands before, as in ",
    ),
    "quality that is none": (
        "[engine]",
        '[[variants]]\nname = "a"\nensemble = ["int8"]\ndefend = [{ jpeg = { quality = 0 } }]\n[engine]',
        "variants[2].defend[0].jpeg.quality: got 0, expected 1 to 95",
    ),
    "bits that an image has": (
        "[engine]",
        '[[variants]]\nname = "a"\nensemble = ["int8"]\ndefend = [{ bit_depth = { bits = 8 } }]\n[engine]',
        "variants[2].defend[0].bit_depth.bits: got 8, expected 1 to 7, as images have 8",
    ),
    "resizing to everything": (
        "[engine]",
        '[[variants]]\nname = "a"\nensemble = ["int8"]\ndefend = [{ random_resize = { smallest = 1 } }]\n[engine]',
        "variants[2].defend[0].random_resize.smallest: got 1, expected a share between 0 and 1",
    ),
    "unknown defence": (
        "[engine]",
        '[[variants]]\nname = "a"\nensemble = ["int8"]\ndefend = [{ blur = {} }]\n[engine]',
        "variants[2].defend[0].blur: no such key, expected one of jpeg, bit_depth, random_resize",
    ),
    "two defences in one": (
        "[engine]",
        '[[variants]]\nname = "a"\nensemble = ["int8"]\ndefend = [{ jpeg = {}, bit_depth = {} }]\n[engine]',
        "variants[2].defend[0].jpeg: got jpeg and bit_depth in one defence, expected exactly one of jpeg,",
    ),
    "ensemble of one without a defence": (
        "[engine]",
        '[[variants]]\nname = "a"\nensemble = ["int8"]\n[engine]',
        "variants[2].ensemble: got ['int8'], expected two or more variants, each once, or defend beside one",
    ),
    "defence that has a variant's name": (
        "[engine]",
        '[[variants]]\nname = "a"\nensemble = ["int8"]\ndefend = [{ jpeg = {} }]\n'
        '[[variants]]\nname = "a_defence"\n[engine]',
        'variants[3].name: got "a_defence", expected another name: it is that of the first step of the ensemble',
    ),
    "more answers than queries": (
        "epsilon = 8",
        "epsilon = 8\nexpectation = 20\nmax_queries = 10",
        "attacks[0].max_queries: got 0, expected at least 1, after it was divided by expectation (20)",
    ),
    "ensemble that is compressed": (
        'name = "int8"',
        'name = "int8"\nensemble = ["fp32", "a"]',
        "variants[1].compress: got it beside ensemble, expected it in the members' own variants",
    ),
    "unknown precision": (
        'precision = "int8"',
        'precision = "int4"',
        'variants[1].compress[0].quantize.precision: got "int4", expected one of "int8", "fp8"',
    ),
    "unknown key with a close one": (
        "image_size",
        "image_sise",
        'data.image_sise: no such key, did you mean "image_size"? expected one of source, path,',
    ),
    "unknown table": (
        "[engine]",
        "[motor]",
        "motor: no such key, expected one of name, data, model, train, variants, engine, serving, load, attacks",
    ),
    "unknown step": (
        "{ quantize = {",
        "{ shrink = {",
        "variants[1].compress[0].shrink: no such key, expected one of prune, select, low_rank, sparsify, distil,",
    ),
    "empty step": (
        '{ quantize = { precision = "int8", method = "entropy" } }',
        "{}",
        "variants[1].compress[0].quantize: got nothing in one step, expected exactly one of",
    ),
    "array for a table": (
        'name = "x"',
        'name = "x"\nload = [1]',
        "load: got [1], expected a table with the keys concurrencies, rates_rps,",
    ),
    "missing key": ('name = "x"', "", "name: missing, expected a string"),
    "missing table": (
        '[data]\nsource = "digits"\nimage_size = 32',
        "",
        "data: missing, expected a table with the keys source, path,",
    ),
    "missing name of a variant": (
        'name = "fp32"',
        "",
        "variants[0].name: missing, expected a string",
    ),
    "name that Triton cannot load": (
        'name = "x"',
        'name = "My model"',
        'name: got "My model", expected up to 100 of a-z, 0-9, "_" and "-", as it names the models',
    ),
    "variant that Triton cannot load": (
        'name = "int8"',
        'name = "../int8"',
        'variants[1].name: got "../int8", expected up to 100 of a-z, 0-9, "_" and "-", as it names the model',
    ),
    "name longer than a file's": (
        'name = "x"',
        f'name = "{"x" * 300}"',
        f'name: got "{"x" * 56}..., expected up to 100 of a-z, 0-9, "_" and "-", as it names the models',
    ),
    "variant longer than a file's": (
        'name = "int8"',
        f'name = "{"x" * 101}"',
        f'variants[1].name: got "{"x" * 56}..., expected up to 100 of a-z, 0-9, "_" and "-"',
    ),
    "name of two lines": ('name = "x"', 'name = "x\\n"', r'name: got "x\n", expected printable text'),
    "null byte in a path": (
        'source = "digits"',
        'source = "folder"\npath = "a\\u0000b"',
        r'data.path: got "a\u0000b", expected printable text',
    ),
    "escape in a key": ("epsilon = 8", '"eps\\u001b[31m" = 8', r"attacks[0].eps\u001b[31m: got 8, expected print"),
    "integer of 5000 digits": (
        'kind = "auto"',
        "max_batch = " + "9" * 5000,
        "not TOML: Exceeds the limit (4300 digits) for integer string conversion",
    ),
    "integer of 5000 hexadecimal digits": (
        'kind = "auto"',
        "max_batch = 0x" + "f" * 5000,
        "engine.max_batch: got an integer of 20000 bits, expected an integer of 64 bits",
    ),
    "integer beyond TOML's": (
        "image_size = 32",
        f"seed = {2**63}",
        "data.seed: got 9223372036854775808, expected an integer of 64 bits, as TOML has them",
    ),
    "batch beyond Triton's": (
        'kind = "auto"',
        f"max_batch = {2**31}",
        "engine.max_batch: got 2147483648, expected 1",
    ),
    "instances beyond Triton's": (
        'kind = "auto"',
        f"num_instances = {2**31}",
        "engine.num_instances: got 2147483648",
    ),
    "queue without room": (
        "[engine]",
        "[serving]\nmax_queue = 0\n[engine]",
        "serving.max_queue: got 0, expected 1",
    ),
    "queue without patience": (
        "[engine]",
        "[serving]\nqueue_timeout_ms = 0\n[engine]",
        "serving.queue_timeout_ms: got 0, expected 1 to 3600000 (an hour)",
    ),
    "run of one image": (
        "[engine]",
        "[serving]\nwatch_queries = 1\n[engine]",
        "serving.watch_queries: got 1, expected 2 to 1000000 images",
    ),
    "no version kept": (
        "[engine]",
        "[serving]\nkeep_versions = 0\n[engine]",
        "serving.keep_versions: got 0, expected at least 1",
    ),
    "arrays of 5000 levels": (
        'kind = "auto"',
        f"kind = {'[' * 5000}{']' * 5000}",
        "nested too deeply, expected a",
    ),
    "arrays of 400 levels": (
        'kind = "auto"',
        f"kind = {'[' * 400}{']' * 400}",
        'engine.kind: nested too deeply, expected one of "auto", "openvino"',
    ),
    "tables of 3000 levels": ('kind = "auto"', ".".join("a" * 3000) + " = 1", "engine.a: nested too deeply"),
    "duplicate variants": (
        'name = "int8"',
        'name = "fp32"',
        'variants[1].name: got "fp32", expected another name than that of variants[0]',
    ),
    "attack that nobody provides": (
        'name = "square"',
        'name = "laser"',
        f'attacks[0].name: got "laser", expected one of {OURS}',
    ),
    "attack that is no name": (
        'name = "square"\nepsilon',
        "name = 3\nepsilon",
        f"attacks[0].name: got 3, expected one of {OURS}",
    ),
    "key of another attack": (
        'name = "square"',
        'name = "noise"\np_init = 0.5',
        'attacks[0].p_init: no such key with name "noise", expected "square" or "art-square"',
    ),
    "norm that the attack has not": (
        'name = "square"',
        'name = "art-square"\nnorm = "l2"',
        'attacks[0].norm: got "l2", expected "linf"',
    ),
    "norm that no attack has": (
        'name = "square"',
        'name = "noise"\nnorm = "l1"',
        'attacks[0].norm: got "l1", expected one of "linf", "l2"',
    ),
    "budget below a step of the grid": (
        'name = "square"\nepsilon = 8',
        'name = "noise"\nnorm = "l2"\nepsilon = 0.5',
        "attacks[0].epsilon: got 0.5, expected at least 1, and finite (units of 1/255 over the whole image",
    ),
    "share of the attack": (
        "epsilon = 8",
        "p_init = 2.0",
        "attacks[0].p_init: got 2, expected a share between 0 and 1",
    ),
    "unknown reference": (
        'name = "square"\nepsilon = 8',
        'name = "differential"\nreference = "int4"',
        'attacks[0].reference: got "int4", expected one of two variants or more: "fp32", "int8"',
    ),
    "reference of an attack without": (
        'name = "square"',
        'name = "pgd"\nsurrogates = ["own", "reference"]',
        'attacks[0].surrogates: got "reference", expected some of "own", "fp32", "int8", or several of them',
    ),
    "duplicate attacks": (
        "epsilon = 8",
        'epsilon = 8\n[[attacks]]\nname = "square"\nepsilon = 8.0',
        "attacks[1]: got square at epsilon 8 in linf as in attacks[0], expected another name, norm or epsilon",
    ),
    "batches": (
        'kind = "auto"',
        "opt_batch = 16\nmax_batch = 8",
        "engine.opt_batch: got 16, expected 1 to 8 (max_batch)",
    ),
    "load beyond the engine": (
        "[engine]",
        "[load]\nbatch_size = 64\n[engine]",
        "load.batch_size: got 64, expected at most 32 (engine.max_batch)",
    ),
    "source without its folder": (
        'source = "digits"',
        'source = "folder"',
        "data.path: got nothing, expected the image folder of source 'folder'",
    ),
    "kind of corruption": (
        "[engine]",
        '[corruptions]\nkinds = ["fog", "rain"]\n[engine]',
        "corruptions.kinds: got rain, expected some of gaussian_noise, shot_noise, ",
    ),
    "severity of corruption": (
        "[engine]",
        "[corruptions]\nseverities = [0, 5]\n[engine]",
        "corruptions.severities: got 0, expected some of 1, 2, 3, 4, 5",
    ),
    "corruptions of more images than there are": (
        "image_size = 32",
        "image_size = 32\nnum_test = 20\n[corruptions]\nnum_images = 50",
        "corruptions.num_images: got 50, expected at most 20 (data.num_test)",
    ),
    "not finite": ("epsilon = 8", "epsilon = nan", "attacks[0].epsilon: got nan, expected a number"),
    "date": ('name = "x"', "name = 2026-11-23", "name: got 2026-11-23, expected a string"),
    "array too short": (
        "image_size = 32",
        "image_size = 32\nmean = [0.5, 0.5]",
        "data.mean: got [0.5, 0.5], expected an array of 3 numbers",
    ),
    "array too long": (
        "image_size = 32",
        "image_size = 32\nmean = [0.5, 0.5, 0.5, 0.5]",
        "data.mean: got [0.5, 0.5, 0.5, 0.5], expected an array of 3 numbers",
    ),
    "key of another table": (
        "[engine]",
        "[model]\nmean = [0.5, 0.5, 0.5]\n[engine]",
        'model.mean: no such key, did you mean "data.mean"? expected one of',
    ),
    "neither one nor the other": (
        "image_size = 32",
        'image_size = 32\nresize = [1, "a"]',
        'data.resize: got [1, "a"], expected an integer or an array of 2 integers or "none"',
    ),
    "another word": ("image_size = 32", 'image_size = "x"', 'data.image_size: got "x", expected an integer or an'),
    "wrong type in an array": (
        "[engine]",
        '[load]\nconcurrencies = [1, "2"]\n[engine]',
        'load.concurrencies[1]: got "2", expected an integer',
    ),
    "not TOML": ("[engine]", "[engine", "not TOML: Expected ']' at the end of a table declaration (at line"),
}


@pytest.mark.parametrize(("old", "new", "line"), MISTAKES.values(), ids=MISTAKES.keys())
def test_load_recipe_mistake(tmp_path: Path, old: str, new: str, line: str) -> None:
    assert old in GOOD
    lines = read_error(tmp_path, GOOD.replace(old, new, 1))
    assert any(found.startswith(line) for found in lines), lines


def test_load_recipe_more_attacked_images_than_test_images(tmp_path: Path) -> None:
    text = GOOD.replace("image_size = 32", "image_size = 32\nnum_test = 20").replace(
        "epsilon = 8", "epsilon = 8\nnum_images = 50"
    )
    assert read_error(tmp_path, text) == ["attacks[0].num_images: got 50, expected at most 20 (data.num_test)"]


@pytest.mark.parametrize(("max_batch", "opt_batch"), [(1, 1), (4, 4), (8, 8), (64, 8)])
def test_load_recipe_tunes_for_no_more_than_the_largest_batch(
    tmp_path: Path, max_batch: int, opt_batch: int
) -> None:
    recipe = load_recipe(write(tmp_path, GOOD.replace('kind = "auto"', f"max_batch = {max_batch}")))
    assert (recipe.engine.max_batch, recipe.engine.opt_batch) == (max_batch, opt_batch)


def test_attack_towards_other_classes_wants_enough_of_them(tmp_path: Path) -> None:
    recipe = load_recipe(write(tmp_path, GOOD.replace('name = "square"', 'name = "apgd-t"')))
    recipe.check_data(num_test=100, num_classes=4)
    with pytest.raises(ValueError, match="attack apgd-t: got a model of 3 classes, expected at least 4"):
        recipe.check_data(num_test=100, num_classes=3)


def test_load_recipe_several_mistakes_one_line_each(tmp_path: Path) -> None:
    text = GOOD.replace("image_size = 32", 'image_size = "32"\ncolour = 1').replace('"auto"', '"foo"')
    found = read_error(tmp_path, text)
    assert [line.partition(":")[0] for line in found] == ["data.image_size", "data.colour", "engine.kind"]


def test_load_recipe_no_variants(tmp_path: Path) -> None:
    text = 'name = "x"\nvariants = []\n[data]\n'
    assert read_error(tmp_path, text) == [
        'variants: got none, expected at least one [[variants]] table with a "name"'
    ]


def test_load_recipe_without_file(tmp_path: Path) -> None:
    with pytest.raises(RecipeError, match=r"none\.toml: no such file, expected a recipe such as recipes/"):
        load_recipe(tmp_path / "none.toml")
    with pytest.raises(RecipeError, match="cannot be read: File name too long"):
        load_recipe(tmp_path / ("x" * 300))
    with pytest.raises(RecipeError, match="is a folder, expected a recipe"):
        load_recipe(tmp_path)


def test_load_recipe_binary_file(tmp_path: Path) -> None:
    (tmp_path / "x.toml").write_bytes(b"name = \xff")
    with pytest.raises(RecipeError, match=r"x\.toml: not UTF-8 text \(byte 7\), expected a TOML file"):
        load_recipe(tmp_path / "x.toml")


def test_load_recipe_paths_are_the_recipes_own(tmp_path: Path) -> None:
    text = GOOD.replace('source = "digits"', 'source = "folder"\npath = "images"').replace(
        "[engine]", '[model]\nweights = "weights/best.safetensors"\n[engine]'
    )
    recipe = load_recipe(write(tmp_path, text))
    assert recipe.data.path == str(tmp_path / "images")
    assert recipe.model.weights == str(tmp_path / "weights" / "best.safetensors")


def test_attack_of_a_recipe_takes_its_own_keys(tmp_path: Path) -> None:
    unnamed = GOOD.replace('name = "square"\n', "p_init = 0.05\n")
    noise = '[[attacks]]\nname = "noise"\nnorm = "l2"\nepsilon = 512\n'
    attacks = load_recipe(write(tmp_path, unnamed + noise)).attacks
    assert [(attack.name, attack.norm, attack.epsilon) for attack in attacks] == [
        ("square", "linf", 8.0),
        ("noise", "l2", 512.0),
    ]
    assert [type(attack) for attack in attacks] == [ATTACKS.get(attack.name).config for attack in attacks]


STRIPES = (Path(__file__).parents[3] / "docs" / "examples" / "attack" / "temper_example_attack.py").read_text()


def test_attack_of_another_package_is_an_attack_like_ours(tmp_path: Path, install: Callable[..., Path]) -> None:
    install(ATTACKS, "stripes", STRIPES, {"stripes": "STRIPES"})
    recipe = load_recipe(write(tmp_path, GOOD.replace('"square"', '"stripes"\nwidth = 3')))
    assert recipe.attacks[0] == ATTACKS.get("stripes").config(epsilon=8, width=3)
    assert read_error(tmp_path, GOOD.replace('"square"', '"stripes"\nwidth = 0')) == [
        "attacks[0].width: got 0, expected at least 1"
    ]
    assert read_error(tmp_path, GOOD.replace('"square"', '"stripes"\np_init = 0.1'))[0].startswith(
        'attacks[0].p_init: no such key with name "stripes", expected "square" or "art-square"'
    )
    assert read_error(tmp_path, GOOD.replace('"square"', '"laser"')) == [
        f'attacks[0].name: got "laser", expected one of {OURS}, "stripes"'
    ]


def test_broken_attack_of_another_package_is_named(tmp_path: Path, install: Callable[..., Path]) -> None:
    install(ATTACKS, "broken", "import no_such_module", {"mine": "MINE"})
    with pytest.raises(
        PluginError, match="^temper.attacks 'mine' of broken .* does not load: ModuleNotFoundError: "
    ):
        load_recipe(write(tmp_path, GOOD))
