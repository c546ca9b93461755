"""An architecture on its way out of a study: a config file that says where it comes from."""

from __future__ import annotations

from igc_nas.record import Candidate, deployed_text
from igc_nas.results import Study
from igc_nas.spec import Recipe
from igc_nas.units import printable


def config_text(study: Study, candidate: Candidate) -> str:
    """The architecture as TOML, under comments with the numbers it was chosen for and what they are of."""
    latency, score, cost = candidate.latency, candidate.score, candidate.cost
    facts = (
        f"trial {candidate.trial} of {study.spec.name}, id {candidate.id}",
        str(candidate.arch),
        f"{cost.params:,} parameters, {cost.macs:,} MACs, {cost.activations:,} activations",
        f"held-out error {100 * score.error:.2f} % on {score.held_out:,} images of {score.dataset} "
        f"after a proxy training of {recipe_text(study.spec.recipe)}",
        f"latency {latency.normalised_ms:.3f} ms{' (noisy)' if latency.noisy else ''}; measured "
        f"{latency.median_ms:.3f} ms, 95 % interval {latency.low_ms:.3f} to {latency.high_ms:.3f}, n = {latency.n}",
        f"that is of the form {deployed_text(candidate)} (parameters, MACs, weights as deployed)",
        f"latency conditions: {latency.runtime}, batch {latency.batch}, {latency.conditions.threads} thread(s), "
        f"{latency.dtype}, {latency.memory_format}, on {latency.conditions.device}",
    )
    return "".join(f"# {printable(fact, lines=False)}\n" for fact in facts) + "\n" + candidate.arch.to_toml()


def recipe_text(recipe: Recipe) -> str:
    """A proxy recipe in words."""
    return (
        f"{recipe.epochs} epoch(s) of {recipe.train_size:,} images at {recipe.resolution} px "
        f"(batch {recipe.batch}, lr {recipe.lr:g}, {recipe.dtype}, {recipe.forms} forms)"
    )
