"""The recipe: one TOML file that says what to build, serve, measure and attack.

Every table is the config of the part that it is for (`DataConfig` beside the data code, and so on), so nothing is
written twice. This file reads the TOML, checks it strictly and says what is wrong with the key's full path.
"""

from __future__ import annotations

import dataclasses
import tomllib
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, ClassVar

from temper.builder.compress.imported import check_imported
from temper.builder.compress.variant import VariantConfig
from temper.builder.data.config import DataConfig
from temper.builder.engines.kind import AutoConfig, EngineConfig
from temper.builder.explain.config import PARTS, ExplainConfig
from temper.builder.names import MAX_NAME_LENGTH, is_recipe_name
from temper.builder.network.resnet import ModelConfig
from temper.builder.network.train import TrainConfig
from temper.builder.publish.serving import ServingConfig
from temper.builder.publish.triton_config import decode_name, defence_name, jpeg_name, mean_name
from temper.client.corruptions.config import CorruptionsConfig
from temper.client.load.config import LoadConfig
from temper.client.robustness.base import ATTACKS, OWN, REFERENCE, AttackConfig
from temper.errors import RecipeError
from temper.gate.config import SERVED, GateConfig
from temper.gate.evidence import WORST_CASE
from temper.run.recipe_errors import find_unjson, format_errors, show

_NAME_RULE = f'expected up to {MAX_NAME_LENGTH} of a-z, 0-9, "_" and "-", as it names the model'


@dataclass(frozen=True, kw_only=True)
class Recipe:
    """A whole recipe, checked."""

    __pydantic_config__: ClassVar[dict[str, str]] = {"extra": "forbid"}

    name: str
    """Names the run's folder and, with a variant's name after `_`, the model in the repository."""
    data: DataConfig
    """The images."""
    model: ModelConfig = field(default_factory=ModelConfig)
    """The architecture and its weights."""
    train: TrainConfig = field(default_factory=TrainConfig)
    """How the weights are finetuned."""
    variants: tuple[VariantConfig, ...]
    """What is built from them; the first one is what the others are compared with, where they name no other."""
    engine: EngineConfig = field(default_factory=AutoConfig)
    """What runs the variants."""
    serving: ServingConfig = field(default_factory=ServingConfig)
    """How they are served: what bounds their queues."""
    load: LoadConfig = field(default_factory=LoadConfig)
    """The load tests."""
    attacks: tuple[AttackConfig, ...] = ()
    """The attacks that every variant goes through."""
    corruptions: CorruptionsConfig | None = None
    """Accuracy on corrupted images; not measured when not given."""
    gate: GateConfig | None = None
    """The rules by which a variant may be shipped; no verdict is given without."""
    explain: ExplainConfig | None = None
    """A look into the network after the measurements, on a page of its own; not taken when not given."""

    def __post_init__(self) -> None:
        """Refuses what is impossible across tables.

        Raises:
            ValueError: The text begins with the full path of the key.
        """
        if not is_recipe_name(self.name):
            raise ValueError(f"name: got {show(self.name)}, {_NAME_RULE}s")
        if not self.variants:
            raise ValueError('variants: got none, expected at least one [[variants]] table with a "name"')
        self._check_variants()
        if self.model.graph is not None:
            check_imported(self.train, self.variants)
            self._check_look()
        self._check_attacks()
        self._check_gate()
        if self.load.batch_size > self.engine.max_batch:
            raise ValueError(
                f"load.batch_size: got {self.load.batch_size}, expected at most {self.engine.max_batch} "
                "(engine.max_batch)"
            )

    def _check_variants(self) -> None:
        seen: dict[str, int] = {}
        for index, variant in enumerate(self.variants):
            path = f"variants[{index}].name"
            if not is_recipe_name(variant.name):
                raise ValueError(f"{path}: got {show(variant.name)}, {_NAME_RULE}")
            if variant.name in seen:
                first = seen[variant.name]
                raise ValueError(
                    f'{path}: got "{variant.name}", expected another name than that of variants[{first}]'
                )
            for name in variant.ensemble:
                self._check_member(f"variants[{index}].ensemble", name, seen)
            if variant.against is not None and variant.against not in seen:
                known = ", ".join(f'"{other}"' for other in seen) or "none yet"
                raise ValueError(
                    f"variants[{index}].against: got {show(variant.against)}, expected a variant above it: {known}"
                )
            seen[variant.name] = index
        self._check_steps(seen)

    def _check_steps(self, seen: Mapping[str, int]) -> None:
        """Refuses a variant that is called as what is published beside another one."""
        for index, variant in enumerate(self.variants):
            steps = {mean_name(variant.name): "last"} if len(variant.ensemble) > 1 else {}
            if variant.defend:
                steps[defence_name(variant.name)] = "first"
            taken = {name: f"the {place} step of the ensemble" for name, place in steps.items()}
            if self.serving.jpeg:
                jpeg = jpeg_name(variant.name)
                taken |= {jpeg: "what takes image files for", decode_name(jpeg): "what decodes for"}
            for name, what in taken.items():
                if name in seen:
                    raise ValueError(
                        f'variants[{seen[name]}].name: got "{name}", expected another name: it is that of '
                        f"{what} variants[{index}]"
                    )

    def _check_look(self) -> None:
        if "features" in self.look.parts:
            kept = ", ".join(f'"{part}"' for part in PARTS if part != "features")
            raise ValueError(
                "explain.parts: got features, which needs the PyTorch network's head, expected some of "
                f"{kept}: model.weights is an ONNX file"
            )

    def _check_member(self, path: str, name: str, earlier: Mapping[str, int]) -> None:
        members = [other for other, index in earlier.items() if not self.variants[index].ensemble]
        if name not in members:
            known = ", ".join(f'"{member}"' for member in members) or "none yet"
            raise ValueError(
                f'{path}: got "{name}", expected variants above it that are no ensembles themselves: {known}'
            )

    def _check_attacks(self) -> None:
        seen: dict[tuple[str, str, float], int] = {}
        variants = [variant.name for variant in self.variants]
        for index, attack in enumerate(self.attacks):
            reference = self.reference_of(attack)
            if reference is not None and (reference not in variants or len(variants) < 2):
                known = ", ".join(f'"{one}"' for one in variants)
                raise ValueError(
                    f"attacks[{index}].reference: got {show(reference)}, expected one of two variants or more: "
                    f"{known}"
                )
            names = [OWN, *([REFERENCE] if reference is not None else []), *variants]
            for name in getattr(attack, "surrogates", ()):
                if unknown := [part for part in name.split("+") if part not in names]:
                    known = ", ".join(f'"{one}"' for one in names)
                    raise ValueError(
                        f"attacks[{index}].surrogates: got {show(unknown[0])}, expected some of {known}, "
                        'or several of them joined by "+"'
                    )
            for one in attack.each_budget():
                key = (one.name, one.norm, one.epsilon)
                if key in seen:
                    raise ValueError(
                        f"attacks[{index}]: got {one.name} at epsilon {one.epsilon:g} in {one.norm} "
                        f"as in attacks[{seen[key]}], expected another name, norm or epsilon"
                    )
                seen[key] = index
        if self.data.num_test is not None:
            self._check_num_test(self.data.num_test, "data.num_test")

    def _check_gate(self) -> None:
        if self.gate is None:
            return
        against, variants = self.gate.against, [variant.name for variant in self.variants]
        if against not in ("", SERVED, *variants):
            known = ", ".join(f'"{one}"' for one in (SERVED, *variants))
            raise ValueError(f"gate.against: got {show(against)}, expected one of {known}")
        if against != SERVED and len(variants) < 2:
            raise ValueError(
                f'gate.against: got one variant and nothing to hold it against, expected a second, or "{SERVED}"'
            )
        if (rule := self.gate.robustness) is None:
            return
        if against == SERVED:
            raise ValueError(
                f'gate.robustness: got against = "{SERVED}", whose gradients nobody has, expected a variant'
            )
        aimed = dict.fromkeys(one.name for one in self.attacks if self.reference_of(one) is None)
        if rule.attack not in (WORST_CASE, *aimed) or not aimed:
            known = ", ".join(f'"{one}"' for one in (WORST_CASE, *aimed))
            raise ValueError(
                f"gate.robustness.attack: got {show(rule.attack)}, expected "
                + (f"one of {known}" if aimed else "an attack to judge by: the recipe has no [[attacks]]")
            )

    @property
    def look(self) -> ExplainConfig:
        """How the network is looked into; all parts, the default, are of an ONNX file those that it can give."""
        config = self.explain or ExplainConfig()
        if self.model.graph is None or config.parts != PARTS:
            return config
        return dataclasses.replace(config, parts=tuple(part for part in PARTS if part != "features"))

    def to_json(self) -> dict[str, Any]:
        """Returns the recipe with its defaults, as the report has it; an ONNX file has no `arch` but its own."""
        found = dataclasses.asdict(self)
        if self.model.graph is not None:
            del found["model"]["arch"]
        return found

    def reference_of(self, attack: AttackConfig) -> str | None:
        """The variant that an attack compares the others with; None of one that compares with none."""
        if not ATTACKS.get(attack.name).compares:
            return None
        return getattr(attack, "reference", "") or self.variants[0].name

    def check_data(self, num_test: int, num_classes: int) -> None:
        """Refuses what the data does not allow.

        Args:
            num_test: The test images.
            num_classes: The classes.

        Raises:
            ValueError: Names the key.
        """
        self._check_num_test(num_test, "all the test images there are")
        for index, attack in enumerate(self.attacks):
            if why := attack.why_not(num_classes):
                raise ValueError(f"attacks[{index}]: {why}")

    def _check_num_test(self, num_test: int, source: str) -> None:
        for index, attack in enumerate(self.attacks):
            if attack.num_images is not None and attack.num_images > num_test:
                raise ValueError(
                    f"attacks[{index}].num_images: got {attack.num_images}, expected at most {num_test} ({source})"
                )
        wanted = self.corruptions.num_images if self.corruptions is not None else None
        if wanted is not None and wanted > num_test:
            raise ValueError(f"corruptions.num_images: got {wanted}, expected at most {num_test} ({source})")


def load_recipe(path: Path) -> Recipe:
    """Reads and checks a recipe.

    Paths in it (`data.path`, `data.labels`, `model.weights`) are relative to the recipe's own folder.

    Raises:
        RecipeError: The file cannot be read, is not TOML, or holds an unknown key, a wrong type or an impossible
            combination; one line for each.
    """
    import json

    from pydantic import TypeAdapter, ValidationError

    content = read_toml(path)
    wrong = find_unjson(content, Recipe)
    if wrong:
        raise RecipeError(f"{path}: {wrong}")
    try:
        # Through JSON, where strict typing still takes an array for a tuple and an integer for a float.
        recipe = TypeAdapter(Recipe).validate_json(json.dumps(content), strict=True)
    except ValidationError as error:
        lines = format_errors(error.errors(include_url=False), Recipe)
        raise RecipeError("\n".join(f"{path}: {line}" for line in lines)) from None
    if recipe.model.graph is not None and "arch" in content["model"]:
        raise RecipeError(
            f"{path}: model.arch: got {show(recipe.model.arch)} with an ONNX file, expected no such key: the file "
            "holds its own network"
        )
    return _with_paths(recipe, path.parent)


def read_toml(path: Path) -> dict[str, Any]:
    """Reads a TOML file.

    Raises:
        RecipeError: It cannot be read, or is none.
    """
    try:
        return tomllib.loads(path.read_bytes().decode("utf-8"))
    except FileNotFoundError:
        raise RecipeError(f"{path}: no such file, expected a recipe such as recipes/digits.toml") from None
    except IsADirectoryError:
        raise RecipeError(f"{path}: is a folder, expected a recipe such as recipes/digits.toml") from None
    except OSError as error:
        raise RecipeError(f"{path}: cannot be read: {error.strerror}") from error
    except UnicodeDecodeError as error:
        raise RecipeError(f"{path}: not UTF-8 text (byte {error.start}), expected a TOML file") from None
    except RecursionError:
        raise RecipeError(f"{path}: nested too deeply, expected a recipe such as recipes/digits.toml") from None
    except ValueError as error:  # what is no TOML, an integer of thousands of digits, a path with a null byte
        raise RecipeError(f"{path}: not TOML: {str(error).split(';')[0]}") from None


def _with_paths(recipe: Recipe, folder: Path) -> Recipe:
    """The recipe with its relative paths taken from its folder."""
    base = folder.resolve()
    if recipe.data.path is not None:
        recipe = replace(recipe, data=replace(recipe.data, path=str(base / recipe.data.path)))
    if recipe.data.labels is not None:
        recipe = replace(recipe, data=replace(recipe.data, labels=str(base / recipe.data.labels)))
    if recipe.model.checkpoint is not None:
        weights = str(base / recipe.model.checkpoint)
        recipe = replace(recipe, model=replace(recipe.model, weights=weights))
    return recipe
