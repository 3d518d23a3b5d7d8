"""The `temper` command, as it is declared; each of its commands is a file of `commands/`.

Results go to standard output, progress and logs to standard error. Exit 0: done; 1: the run failed, with one line
that says why; 2: wrong usage; 3: `diagnose` found a difference, `gate` says HOLD, or `promote --watch` went back;
4: `gate` lacks data; 130: Ctrl-C. Nothing heavy is imported before a command needs it.

Long because every option of every command is declared here, where they can be compared.
"""

from __future__ import annotations

import signal
from pathlib import Path
from types import FrameType
from typing import Any

import click

from temper.cli.failures import Group
from temper.cli.options import (
    RegistryChoice,
    check_labels,
    debug_option,
    json_option,
    model_option,
    parse_duration,
    parse_integers,
    parse_names,
    parse_numbers,
    path_type,
    repository_option,
    runs_option,
    url_option,
)


@click.group(cls=Group, context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 110})
@click.version_option(package_name="temper", message="%(package)s %(version)s")
@debug_option
def cli(debug: bool) -> None:
    """Compress finetuned ResNets, serve them with Triton, and measure on the endpoint what that did.

    The main job is `temper run RECIPE`; the other commands are its parts.
    """


@cli.command()
@click.option(
    "--images",
    type=path_type,
    required=True,
    help="A folder of images per class, a table of paths, tar shards, or a data set on disk.",
)
@click.option(
    "--weights",
    default="random",
    show_default=True,
    metavar="FILE",
    help="The finetuned network's checkpoint or ONNX file, or `torchvision`, or `random`.",
)
@click.option(
    "--labels", type=path_type, metavar="FILE", help="The class names in the order of the checkpoint's outputs."
)
@click.option("--out", type=path_type, default=Path("recipe.toml"), show_default=True, help="The recipe to write.")
@click.option("--name", metavar="NAME", help="The recipe's name.  [like the folder's]")
@click.option("--force", is_flag=True, help="Overwrite --out.")
@json_option
def init(images: Path, **settings: Any) -> None:
    """Write a recipe for a folder of images.

    Or for a CSV or Parquet table, WebDataset shards, or a Hugging Face data set on disk. Looks at the images,
    their split and sizes, and the checkpoint, chooses from them, and gives its reasons in the recipe's comments.
    """
    from temper.cli.commands.init import init_command

    init_command(images, **settings)


@cli.group()
def data() -> None:
    """Look at images before anything is built of them."""


@data.command("check")
@click.argument("path", type=path_type, metavar="DIR|TABLE|RECIPE")
@json_option
def check_data(path: Path, as_json: bool) -> None:
    """List all that is wrong with the images of a folder, a table, tar shards, a data set on disk, or a recipe.

    Broken and misnamed files, classes without images, the same or nearly the same image in training and test, and
    more. Exits 0 when there are no errors, though there may be warnings, and 1 when there are.
    """
    from temper.cli.commands.data import check_data_command

    check_data_command(path, as_json=as_json)


@cli.command()
@click.argument("recipe_file", type=path_type, required=False, metavar="[RECIPE]")
@click.option("--schema", is_flag=True, help="Print the JSON Schema of recipes, for editors.")
@json_option
def recipe(recipe_file: Path | None, schema: bool, as_json: bool) -> None:
    """Check RECIPE and say what is wrong with it."""
    from temper.cli.commands.recipe import check_command, schema_command

    if schema == (recipe_file is not None):
        raise click.UsageError("expected either RECIPE or --schema")
    if recipe_file is None:
        schema_command()
    else:
        check_command(recipe_file, as_json=as_json)


@cli.command()
@click.argument("recipe", type=path_type)
@url_option("Serve from this running server, which must read --repository; started here when not given.")
@repository_option
@runs_option
@click.option("--sign", type=path_type, metavar="KEY", help="Sign the verdicts with this key (`temper keys`).")
@json_option
def run(recipe: Path, url: str | None, repository: Path, runs: Path, sign: Path | None, as_json: bool) -> None:
    """Build, serve, measure, attack and judge; write the report.

    Does all that RECIPE says, prints one table and writes runs/NAME/report.html and report.json. Whatever is done
    already is reused.
    """
    from temper.cli.commands.main_job import run_command

    run_command(recipe, url=url, repository=repository, runs=runs, sign=sign, as_json=as_json)


@cli.command()
@click.argument("recipe", type=path_type, required=False, metavar="[RECIPE]")
@click.option("--model", metavar="NAME", help="The served model to judge, in place of RECIPE's variants.")
@click.option(
    "--against",
    default="served",
    show_default=True,
    metavar="NAME",
    help="The served model that it is held against; `served` is the version of --model that answers today.",
)
@click.option("--version", type=click.IntRange(1), help="Version of --model.  [the newest]")
@click.option("--against-version", type=click.IntRange(1), help="Version of --against.  [the served one]")
@click.option(
    "--images",
    type=path_type,
    metavar="DIR|FILE",
    help="Labelled images: one folder per class, or a .npy of uint8 [N, H, W, 3].",
)
@click.option("--labels", type=path_type, metavar="FILE", help="With a .npy of images: the .npy of classes [N].")
@click.option(
    "--sent",
    multiple=True,
    metavar="HOW",
    help="How images are prepared, as of `temper diagnose`.  [what the server says]",
)
@click.option(
    "--rule", "rules", multiple=True, metavar="RULE.LIMIT=V", help="A rule, as accuracy.max_drop=0.5; again."
)
@click.option("--rules", "rules_file", type=path_type, metavar="FILE", help="A TOML file with a table [gate].")
@click.option("--sign", type=path_type, metavar="KEY", help="Sign the verdict with this key (`temper keys`).")
@click.option("--markdown", type=path_type, metavar="FILE", help="Write the verdict for a pull request's comment.")
@click.option("--junit", type=path_type, metavar="FILE", help="Write it as JUnit XML, one test per finding.")
@url_option("Ask this running server; started here when not given.")
@click.option(
    "--repository",
    type=path_type,
    help="Model repository, where verdict.json is written.  [model_repository, without --url]",
)
@runs_option
@json_option
def gate(
    recipe: Path | None, model: str | None, url: str | None, repository: Path | None, **settings: Any
) -> None:
    """Say whether a model may be shipped: SHIP, HOLD or NOT ENOUGH DATA.

    Judges RECIPE's variants by its table [gate], running what of it is not done; or one served model of any KServe
    v2 server, --model, by its answers to labelled --images and by --rule or --rules. Every rule is decided by an
    interval on the same images, against another model or against what is served today. Exits 0, 3 and 4.
    """
    from temper.cli.commands.gate import gate_recipe_command, gate_served_command

    images, labels, runs = settings["images"], settings["labels"], settings.pop("runs")
    if (recipe is None) == (model is None):
        got = "neither" if model is None else "both"
        raise click.UsageError(f"got {got}, expected either RECIPE or --model")
    place = repository or (Path("model_repository") if url is None or recipe is not None else None)
    if recipe is not None:
        shown = {name: settings[name] for name in ("sign", "markdown", "junit", "as_json")}
        source = click.get_current_context().get_parameter_source
        for name in settings.keys() - shown.keys():
            if source(name) is click.core.ParameterSource.COMMANDLINE:
                option = {"rules_file": "rules", "rules": "rule"}.get(name, name).replace("_", "-")
                raise click.UsageError(f"--{option}: expected none with RECIPE, which says it all")
        gate_recipe_command(recipe, url=url, repository=place or Path(), runs=runs, **shown)
        return
    if images is None:
        raise click.UsageError("--images: expected labelled images with --model")
    check_labels(images, labels, "--images", "--labels")
    versions = settings.pop("version"), settings.pop("against_version")
    gate_served_command(model or "", versions=versions, url=url, repository=place, **settings)


@cli.command()
@click.argument("recipe", type=path_type)
@repository_option
@runs_option
@json_option
def build(recipe: Path, repository: Path, runs: Path, as_json: bool) -> None:
    """Build and publish the variants of RECIPE, no more: candidates, but for a model's first version."""
    from temper.cli.commands.main_job import build_command

    build_command(recipe, repository=repository, runs=runs, as_json=as_json)


@cli.command()
@click.argument("recipe", type=path_type)
@click.option(
    "--over",
    multiple=True,
    required=True,
    metavar="STEP.FIELD=V,...",
    help="What is varied, as in low_rank.flops=0.8,0.6; `none` leaves the step out. All combinations.",
)
@click.option("--variant", metavar="NAME", help="The variant that is varied.  [the last one]")
@click.option("--ray", metavar="ADDRESS", help="Run on this Ray cluster; `auto` for the one on this machine.")
@click.option(
    "--gpus", "num_gpus", type=click.FloatRange(0), help="With --ray: GPUs per variant.  [1 for TensorRT]"
)
@click.option("--cpus", "num_cpus", type=click.FloatRange(0), help="With --ray: cores per variant.  [a machine's]")
@repository_option
@runs_option
@json_option
def sweep(recipe: Path, over: tuple[str, ...], **settings: Any) -> None:
    """Build and measure a grid of variants and draw their frontier.

    Every combination of the --over values becomes a variant of RECIPE, measured beside its first one, and beside
    what it is compared with where that is another. The report
    in runs/NAME-sweep marks the variants that no other one beats in accuracy, accuracy under attack, latency and
    size.
    """
    from temper.cli.commands.sweep import sweep_command

    sweep_command(recipe, over=over, **settings)


@cli.command()
@click.argument("recipe", type=path_type)
@click.option("--variant", "variants", multiple=True, metavar="NAME", help="A variant to look at.  [all]")
@click.option(
    "--part",
    "parts",
    multiple=True,
    type=click.Choice(["blame", "representation", "features", "attributions"]),
    help="What to look at.  [what the recipe says, or all]",
)
@click.option(
    "--images", "num_images", type=click.IntRange(4), help="Test images, at most.  [what the recipe says, or 512]"
)
@click.option("--try", "mend", is_flag=True, help="Quantise anew with what is suggested, and measure that.")
@click.option(
    "--keep-high",
    multiple=True,
    metavar="LAYER",
    help="Try this layer, or pattern, in place of what is suggested.",
)
@repository_option
@runs_option
@json_option
def explain(recipe: Path, **settings: Any) -> None:
    """Say which layers a loss comes from, and what they know.

    Builds RECIPE, looks into its variants in process, and writes runs/NAME/explain.html and explain.json: which
    layers of a quantised variant its loss comes from and what to leave unquantised, what every block knows, how
    alike the networks are, which features matter, and where two variants look that answer differently.
    """
    from temper.cli.commands.explain import explain_command

    explain_command(recipe, **settings)


@cli.command()
@click.argument("model", required=False)
@click.option("--images", type=path_type, required=True, help="Folder of images, in class folders or not.")
@click.option(
    "--weights",
    type=path_type,
    multiple=True,
    required=True,
    metavar="FILE",
    help="The checkpoint that should be served; given again, others that it might be.",
)
@click.option(
    "--trained",
    multiple=True,
    metavar="HOW",
    help="How the network's images were prepared: torchvision, timm or huggingface; a recipe, or a "
    "preprocessor_config.json; or keys of [data], as 'resize = 256, colour = \"bgr\"'. May be given again.  "
    "[what lies beside the checkpoint, else what the server says, else torchvision]",
)
@click.option(
    "--sent",
    multiple=True,
    metavar="HOW",
    help="How the client prepares what it sends, in the same words.  [what the server says, else as --trained]",
)
@click.option(
    "--answers",
    type=path_type,
    metavar="FILE",
    help="Scores that your own client got, in place of asking a server: .npy, .json or .csv, a row an image, in "
    "the order of the files or with their names.",
)
@click.option("--classes", type=path_type, metavar="FILE", help="Names of the network's outputs, one a line.")
@click.option(
    "--labels", type=path_type, help="The images' classes, .npy of integers [N], where no folders say so."
)
@click.option(
    "--output",
    type=click.Choice(["logits", "softmax"]),
    default="logits",
    show_default=True,
    help="What should be served.",
)
@click.option(
    "--precision",
    type=click.Choice(["fp32", "fp16", "bf16", "int8", "int8-7bit"]),
    help="The arithmetic that is meant.  [what the server says, else fp32]",
)
@click.option("--num-images", type=click.IntRange(min=2), default=24, show_default=True, help="Images to compare.")
@click.option("--seed", type=click.IntRange(min=0), default=0, show_default=True, help="Draws them.")
@click.option(
    "--effort",
    type=click.FloatRange(min=0, min_open=True),
    default=1.0,
    show_default=True,
    help="How much to search: 1 is some 25 seconds on a core, and tries the same on every machine.",
)
@url_option()
@repository_option
@json_option
def diagnose(
    model: str | None, url: str | None, repository: Path, answers: Path | None, as_json: bool, **settings: Any
) -> None:
    """Say why MODEL answers otherwise than its network in PyTorch.

    Any image classifier of a KServe v2 server is asked about the images and compared with the checkpoint. Where
    they differ, usual mistakes are tried in PyTorch, one and two at a time, until one explains what was served:
    the cause, the share of the difference that it explains, and what to change. Exits 0 when they agree, else 3.
    """
    from temper.cli.commands.diagnose import diagnose_command

    if (model is None) == (answers is None):
        raise click.UsageError("expected either MODEL or --answers")
    if answers is not None and url is not None:
        raise click.UsageError("--url: expected none with --answers, which asks no server")
    diagnose_command(model, url=url, repository=repository, answers=answers, as_json=as_json, **settings)


@cli.command()
@click.argument("path", type=path_type, metavar="RUN")
@json_option
def report(path: Path, as_json: bool) -> None:
    """Show a finished run again and render its report.html anew, and explain.html where it has one.

    RUN is a run's folder, such as runs/digits, or its report.json, also of an older version of Temper.
    """
    from temper.cli.commands.report import report_command

    report_command(path, as_json=as_json)


@cli.command()
@repository_option
@click.option("--model", "models", multiple=True, metavar="NAME", help="A model to serve; all when not given.")
@click.option("--grpc-port", type=click.IntRange(1, 65535), help="Port of the gRPC endpoint; a free one.")
@click.option(
    "--http-port", type=click.IntRange(1, 65535), help="Port of the HTTP endpoint, which is off otherwise."
)
@click.option("--metrics-port", type=click.IntRange(1, 65535), help="Port of the metrics; a free one.")
@click.option("--log-file", type=path_type, help="The server's log; kept only if it dies.")
def serve(
    repository: Path,
    models: tuple[str, ...],
    grpc_port: int | None,
    http_port: int | None,
    metrics_port: int | None,
    log_file: Path | None,
) -> None:
    """Run the embedded tritonserver until Ctrl-C.

    It listens on loopback only. A model that does not load is named, and the others are served.
    """
    from temper.cli.commands.serve import serve_command

    serve_command(repository, models=models or None, ports=(grpc_port, http_port, metrics_port), log_file=log_file)


@cli.command()
@click.argument("repository", type=path_type)
@click.option(
    "--trusted-keys",
    type=path_type,
    metavar="FILE|DIR",
    help="Public keys: refuse what has no SHIP verdict that one of them signed, as a server with them does.",
)
@json_option
def verify(repository: Path, trusted_keys: Path | None, as_json: bool) -> None:
    """Check that every model of REPOSITORY is what was published.

    Compares the served version of each with its digests, config.pbtxt and class names included, and says what each
    version's verdict is worth; needs no server.
    """
    from temper.cli.commands.verify import verify_command

    verify_command(repository, trusted_keys=trusted_keys, as_json=as_json)


@cli.group()
def keys() -> None:
    """Make the keys that sign verdicts, so that a server need not believe a file in its repository."""


@keys.command("create")
@click.option("--out", type=path_type, metavar="FILE", help="The private key.  [verdicts.pem in ~/.config/temper]")
def create_keys(out: Path | None) -> None:
    """Make a private key and, beside it, FILE.pub with the public one, which a server is given to trust.

    The private key is readable by its owner alone and is encrypted when TEMPER_KEY_PASSPHRASE holds a passphrase.
    Neither file is ever overwritten.
    """
    from temper.cli.commands.keys import create_command

    create_command(out)


@keys.command("show")
@click.argument("file", type=path_type, required=False, metavar="[FILE]")
def show_keys(file: Path | None) -> None:
    """Print the public keys of FILE: a private key, a public one, or a folder of those.

    Without FILE it is the private key that `create` makes when it is not told where.
    """
    from temper.cli.commands.keys import show_command

    show_command(file)


@cli.command()
@click.argument("model")
@click.option("--version", type=click.IntRange(min=1), metavar="N", help="The version.  [the newest]")
@click.option("--override", is_flag=True, help="Also what is not SHIP, or has no verdict; needs --reason.")
@click.option("--reason", default="", metavar="TEXT", help="Why; the history keeps it.")
@repository_option
@url_option("A running server that reads --repository and is to load it now; `temper serve` does by itself.")
@click.option(
    "--watch",
    callback=parse_duration,
    metavar="DURATION",
    help="Ask it for so long, such as 60s or 5m, and go back by itself at a sign that it is worse; needs --url.",
)
@click.option(
    "--images",
    type=path_type,
    metavar="DIR|FILE.npy",
    help="With --watch: what to ask about; without it noise, whose answers are not compared.",
)
@click.option(
    "--max-changed",
    type=click.FloatRange(0.1, 50),
    metavar="PERCENT",
    help="With --images: how many may be answered otherwise than before.  [10, or what the verdict allows]",
)
@click.option("--no-rehearsal", is_flag=True, help="With --watch: do not ask it on a server of its own first.")
@json_option
def promote(
    model: str,
    version: int | None,
    override: bool,
    reason: str,
    repository: Path,
    url: str | None,
    watch: float | None,
    images: Path | None,
    max_changed: float | None,
    no_rehearsal: bool,
    as_json: bool,
) -> None:
    """Serve a candidate of MODEL, if its verdict says SHIP.

    Every version but a model's first is a candidate when it is published: whole, and served to nobody. Entries
    that belong to MODEL, such as MODEL_jpeg, are switched with it. A version that is served already stays.

    With --watch the served version is asked for 5 s, the candidate on a server of its own, MODEL is promoted, and
    asked on. When surely more requests fail, answers take longer, or images are answered otherwise, what was
    served before is served on, or again, and the exit status is 3.
    """
    from temper.cli.commands.promote import promote_command, watch_command

    if watch is None and (images is not None or max_changed is not None):
        raise click.UsageError("--images and --max-changed say how it is watched, expected --watch with them")
    if images is None and max_changed is not None:
        raise click.UsageError("--max-changed: expected --images with it, as answers to noise are not compared")
    if watch is not None:
        if url is None:
            raise click.UsageError(
                "--watch asks a running server, expected its --url, which `temper serve` prints as gRPC"
            )
        watch_command(
            model,
            version=version,
            override=override,
            reason=reason,
            repository=repository,
            url=url,
            seconds=watch,
            images=images,
            max_changed=max_changed,
            rehearsal=not no_rehearsal,
            as_json=as_json,
        )
        return
    promote_command(
        model,
        version=version,
        override=override,
        reason=reason,
        repository=repository,
        url=url,
        as_json=as_json,
    )


@cli.command()
@click.argument("model")
@click.option("--reason", default="", metavar="TEXT", help="Why; the history keeps it.")
@repository_option
@url_option("A running server that reads --repository and is to load it now; `temper serve` does by itself.")
@json_option
def rollback(model: str, reason: str, repository: Path, url: str | None, as_json: bool) -> None:
    """Serve the version of MODEL that was served before; a second time the one before that."""
    from temper.cli.commands.promote import rollback_command

    rollback_command(model, reason=reason, repository=repository, url=url, as_json=as_json)


@cli.command()
@click.argument("model")
@repository_option
@json_option
def history(model: str, repository: Path, as_json: bool) -> None:
    """Print which version of MODEL was served when, and the versions that are there with their verdicts."""
    from temper.cli.commands.history import history_command

    history_command(model, repository=repository, as_json=as_json)


@cli.command("prune-versions")
@click.argument("model")
@click.option("--keep", type=click.IntRange(min=1), required=True, metavar="N", help="The newest that stay.")
@repository_option
@json_option
def prune_versions(model: str, keep: int, repository: Path, as_json: bool) -> None:
    """Remove old versions of MODEL; the served one and the one before it stay as well."""
    from temper.cli.commands.history import prune_command

    prune_command(model, keep=keep, repository=repository, as_json=as_json)


@cli.command()
@click.argument("images", type=path_type, nargs=-1, required=True, metavar="IMAGE...")
@model_option
@url_option()
@repository_option
@click.option("--top", type=click.IntRange(min=1), default=5, show_default=True, help="Labels per image.")
@json_option
def query(
    images: tuple[Path, ...], model: str, url: str | None, repository: Path, top: int, as_json: bool
) -> None:
    """Print the labels that a served model gives images.

    An IMAGE is a PNG, JPEG, BMP, WebP, TIFF, PPM or GIF file of up to 67 million pixels, or a folder of them.
    """
    from temper.cli.commands.query import query_command

    query_command(images, model=model, url=url, repository=repository, top=top, as_json=as_json)


@cli.command()
@model_option
@url_option()
@repository_option
@click.option(
    "--images",
    type=path_type,
    multiple=True,
    help="Image, folder of images, or .npy of uint8 [N, H, W, 3]; random pixels when not given.",
)
@click.option(
    "--concurrency", callback=parse_integers, metavar="N,...", help="Closed loop: requests in flight.  [1,4,16]"
)
@click.option(
    "--rate", callback=parse_numbers, metavar="RPS,...", help="Open loop: Poisson arrivals, requests per second."
)
@click.option("--duration", type=click.FLOAT, default=5.0, show_default=True, help="Seconds measured, each.")
@click.option("--warmup", type=click.FLOAT, default=1.0, show_default=True, help="Seconds before, not counted.")
@click.option("--batch-size", type=click.IntRange(min=1), default=1, show_default=True, help="Images per request.")
@click.option("--seed", type=click.IntRange(min=0), default=0, show_default=True, help="Of the arrivals.")
@click.option("--encoded", is_flag=True, help="Send the files as they are, to NAME_jpeg, which decodes them.")
@json_option
def load(
    images: tuple[Path, ...],
    concurrency: tuple[int, ...] | None,
    rate: tuple[float, ...] | None,
    duration: float,
    warmup: float,
    batch_size: int,
    seed: int,
    **shared: Any,
) -> None:
    """Measure throughput and latency of a served model.

    Closed loop at each --concurrency, then open loop at each --rate, with latency counted from the scheduled
    time. Without --rate there is one open loop, at 70 % of the best throughput; with --rate alone there is no
    closed loop.
    """
    from temper.cli.commands.load import load_command

    settings: dict[str, Any] = {"duration_s": duration, "warmup_s": warmup, "batch_size": batch_size, "seed": seed}
    if concurrency is not None or rate is not None:
        settings |= {"concurrencies": concurrency or (), "rates_rps": rate or ()}
    load_command(images, settings=settings, **shared)


@cli.command()
@model_option
@url_option()
@repository_option
@click.option(
    "--images", type=path_type, required=True, help="Folder of images per class, or .npy of uint8 [N, H, W, 3]."
)
@click.option("--labels", type=path_type, help="With a .npy of images: .npy of their classes, integers [N].")
@click.option(
    "--attack",
    "name",
    default="square",
    show_default=True,
    type=RegistryChoice("temper.client.robustness.base:ATTACKS"),
)
@click.option(
    "--epsilon",
    type=click.FLOAT,
    default=8.0,
    show_default=True,
    help="Budget in 1/255: per channel of a pixel in linf, over the whole image in l2.",
)
@click.option("--norm", metavar="[linf|l2]", help="Norm of the budget, of those that the attack has.  [linf]")
@click.option(
    "--max-queries",
    type=click.INT,
    help="Queries per image.  [1000; of an attack with a surrogate, images that are sent: 2 to 9]",
)
@click.option(
    "--expectation",
    type=click.INT,
    default=1,
    show_default=True,
    help="Of a model that draws at random: answers to each image that is sent, all queries; their mean counts.",
)
@click.option(
    "--surrogate",
    "surrogates",
    type=click.STRING,
    multiple=True,
    metavar="FILE.onnx",
    help="Network whose gradients are followed, that takes what the model takes (uint8 images with the "
    "preprocessing inside, as a repository's model.onnx does); may be given again, each has its turn. Without it, "
    "the graph of the model's version in --repository. A defence that the model there stands behind is before it "
    "too. Of differential two: the model's, and the reference's.",
)
@click.option(
    "--reference",
    metavar="NAME",
    help="Second served model, for the attack differential: only what it still gets right counts as fooled.",
)
@click.option("--steps", type=click.INT, help="Steps along the gradient, each turn.")
@click.option("--num-images", type=click.INT, help="Images to attack, drawn by the seed; all when not given.")
@click.option("--batch-size", type=click.INT, default=32, show_default=True, help="Images per request.")
@click.option("--concurrency", type=click.INT, default=4, show_default=True, help="Requests in flight.")
@click.option("--seed", type=click.INT, default=0, show_default=True, help="Of the images and the attack.")
@click.option("--save", type=path_type, help="Folder for adversarial images, and to resume from.")
@runs_option
@json_option
def attack(
    model: str,
    url: str | None,
    repository: Path,
    images: Path,
    labels: Path | None,
    save: Path | None,
    runs: Path,
    as_json: bool,
    **settings: Any,
) -> None:
    """Measure the accuracy of a served model under attack.

    Every image is sent to the endpoint as uint8, within the budget, and judged by the answer. An attack that ends
    early goes on where it was when the same command is given again.
    """
    from temper.cli.commands.attack import attack_command

    check_labels(images, labels, "--images", "--labels")
    attack_command(
        images,
        labels,
        settings=settings,
        model=model,
        url=url,
        repository=repository,
        runs=runs,
        save=save,
        as_json=as_json,
    )


@cli.command()
@click.argument("images", type=path_type)
@click.argument("labels", type=path_type, required=False)
@model_option
@url_option()
@repository_option
@click.option("--kinds", callback=parse_names, metavar="KIND,...", help="Of the 15 of ImageNet-C.  [all]")
@click.option("--severities", callback=parse_integers, metavar="N,...", help="How strong, 1 to 5.  [1,2,3,4,5]")
@click.option("--num-images", type=click.INT, help="Images to corrupt, drawn by the seed; all when not given.")
@click.option("--batch-size", type=click.INT, default=32, show_default=True, help="Images per request.")
@click.option("--concurrency", type=click.INT, default=4, show_default=True, help="Requests in flight.")
@click.option("--seed", type=click.INT, default=0, show_default=True, help="Of the images and the corruptions.")
@click.option("--save", type=path_type, help="Folder for the answers, for --against, and to resume from.")
@click.option("--against", type=path_type, help="Folder that --save wrote for another model: compare with it.")
@runs_option
@json_option
def corrupt(
    images: Path,
    labels: Path | None,
    model: str,
    url: str | None,
    repository: Path,
    save: Path | None,
    against: Path | None,
    runs: Path,
    as_json: bool,
    **settings: Any,
) -> None:
    """Measure the accuracy of a served model on corrupted images.

    IMAGES is a folder of images per class, or a .npy of uint8 [N, H, W, 3] with LABELS, the .npy of their classes.
    Each image is sent in every kind and severity of ImageNet-C, and with --against the mean corruption error is
    given. What ends early goes on where it was when the same command is given again.
    """
    from temper.cli.commands.corrupt import corrupt_command

    check_labels(images, labels, "IMAGES", "LABELS")
    corrupt_command(
        images,
        labels,
        settings=settings,
        model=model,
        url=url,
        repository=repository,
        runs=runs,
        save=save,
        against=against,
        as_json=as_json,
    )


@cli.command()
@click.argument("model", metavar="MODEL")
@click.option(
    "--versions",
    callback=parse_integers,
    required=True,
    metavar="A,B",
    help="The two versions; with --url the server must serve both.",
)
@click.option(
    "--images",
    type=path_type,
    required=True,
    help="Folder of images, sent in the order of their names, or .npy of uint8 [N, H, W, 3].",
)
@click.option("--labels", type=path_type, help=".npy of the images' classes, integers [N], in that order.")
@url_option()
@repository_option
@click.option("--out", type=path_type, metavar="DIR", help="Where the disagreements go.  [runs/MODEL-shadow]")
@click.option(
    "--keep",
    type=click.IntRange(0),
    default=200,
    show_default=True,
    help="Disagreements that are kept, the most different ones.",
)
@json_option
def shadow(model: str, versions: tuple[int, ...], **settings: Any) -> None:
    """Let two versions of MODEL answer the same images and keep where they disagree.

    Prints how often they do and, with --labels, what that does to the accuracy; writes the images with both
    answers to DIR/shadow.html and shadow.json. What came in as requests is given as a folder of files whose names
    sort in the order that they came. How fast the two are is not compared: for that ask them apart, with
    `temper load`.
    """
    from temper.cli.commands.shadow import shadow_command

    if len(versions) != 2 or versions[0] == versions[1]:
        got = ",".join(map(str, versions))
        raise click.UsageError(f"--versions: got {got}, expected two versions that differ, such as 3,4")
    shadow_command(model, versions=(versions[0], versions[1]), **settings)


@cli.command()
@click.option(
    "--unused-for",
    "unused_days",
    type=click.FloatRange(0),
    default=30.0,
    show_default=True,
    metavar="DAYS",
    help="Stages that no run has used for so long.",
)
@click.option(
    "--to-size",
    "to_gb",
    type=click.FloatRange(0),
    metavar="GB",
    help="And as many more, the longest unused first, until no more than this is left.",
)
@click.option("--yes", is_flag=True, help="Remove them; without it they are shown only.")
@runs_option
@json_option
def clean(runs: Path, as_json: bool, **settings: Any) -> None:
    """Show and remove results of stages that nobody uses any more.

    A stage whose recipe, code or libraries changed is never read again, but kept; what is removed is made anew by
    the run that wants it. Reports, logs and the model repository stay.
    """
    from temper.cli.commands.clean import clean_command

    clean_command(runs, as_json=as_json, **settings)


@cli.command()
@json_option
def doctor(as_json: bool) -> None:
    """Say what this machine can build and run, and what installs the rest."""
    from temper.cli.commands.doctor import doctor_command

    doctor_command(as_json=as_json)


def main() -> None:
    """The console script: SIGTERM ends a command as Ctrl-C does, so that no server outlives it."""
    signal.signal(signal.SIGTERM, _terminate)
    cli()


def _terminate(number: int, frame: FrameType | None) -> None:
    signal.signal(number, signal.SIG_IGN)  # once: the unwinding must not be interrupted
    raise KeyboardInterrupt("terminated")


if __name__ == "__main__":
    main()
