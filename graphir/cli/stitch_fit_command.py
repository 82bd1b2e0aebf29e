"""`graphir stitch-fit FILE`: initialise stitches by least squares on a calibration batch."""

from __future__ import annotations

from typing import Any

import click

from .common import SEEDS, file_argument, load, model_option, set_option, stitch_option


def _matches(ctx: click.Context, param: click.Parameter, values: tuple[str, ...]) -> dict[str, str]:
    found = {}
    for value in values:
        stitch, equals, path = value.partition("=")
        if not equals or not stitch or not path:
            raise click.BadParameter(f"'{value}' is not STITCH=PATH", ctx, param)
        found[stitch.strip()] = path.strip()
    return found


@click.command("stitch-fit")
@file_argument
@click.option("--weights", metavar="FILE", required=True, help="The model's weights as safetensors; stitches may be missing.")
@click.option("--input", "inputs", metavar="FILE", required=True, help="The calibration batch: the model's inputs as safetensors.")
@click.option("--targets", metavar="FILE", help="What stitches should give for the batch, as safetensors by path of the stitch.")
@click.option("--reference", metavar="FILE", help="Or a model that computes the targets from the same inputs ...")
@click.option("--reference-weights", metavar="FILE", help="... its weights ...")
@click.option(
    "--match", "matches", multiple=True, metavar="STITCH=PATH", callback=_matches, help="... and what a stitch should equal in it."
)
@click.option("--output", "-o", metavar="FILE", required=True, help="Write the weights with fitted stitches.")
@model_option
@set_option
@stitch_option
@click.option("--seed", type=SEEDS, default=0, show_default=True, help="Seed of stitches that the weights lack.")
def command(file: str, model: str | None, params: dict[str, Any], stitch: bool, **options: Any) -> None:
    """Initialise stitches by least squares: each should give, on a calibration batch, what its consumer was trained on."""
    if (options["targets"] is None) == (options["reference"] is None):
        raise click.UsageError("give the targets with --targets, or with --reference, --reference-weights and --match")
    if options["reference"] and not (options["reference_weights"] and options["matches"]):
        raise click.UsageError("--reference needs --reference-weights and --match")
    graph = load(file, model, params, stitch)
    from ..backends.samples import read_inputs
    from ..backends.stitch_fit import fit_stitches, load_without_stitches
    from ..backends.weights import save

    weights = load_without_stitches(options["weights"], graph, options["seed"])
    inputs = read_inputs(options["inputs"], graph)
    fitted, fits = fit_stitches(graph, weights, inputs, _targets(options, inputs))
    for fit in fits:
        click.echo(str(fit))
    save(options["output"], fitted)


def _targets(options: dict[str, Any], inputs: Any) -> Any:
    from ..backends.stitch_fit import activations
    from ..backends.weights import load as load_weights
    from ..backends.weights import read_tensors

    if options["targets"]:
        return read_tensors(options["targets"])
    reference = load(options["reference"], None, {})
    matches = options["matches"]
    found = activations(reference, load_weights(options["reference_weights"], reference), inputs, list(dict.fromkeys(matches.values())))
    return {stitch: found[path] for stitch, path in matches.items()}
