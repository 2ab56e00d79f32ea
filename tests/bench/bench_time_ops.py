"""Seconds of an edit at Stable Diffusion 1.4's layout: the published loop and ours, on the same tokens, in one run.

    python -m tests.bench.bench_time_ops
    python -m tests.bench.bench_time_ops --wide 4096 --threads 2    # `solve` alone, at the width of SD3 and FLUX

- published: as diffusers' StableDiffusionModelEditingPipeline.edit_model goes: float32, layer by layer, augmentation by
  augmentation, outer products of every token, torch.inverse for every layer. Measured for one and for a few
  professions; for all it is the line through both.
- ours: `solve` and `fold_into`; `Problem.solve` with other lams; `fold_into` alone.

All start from token pairs in memory. Encoding with a text encoder of the real size (12 layers) is timed apart, once.
Weights are random: 16 cross-attention layers, 32 matrices, d = 768, 77 positions, four augmentations, CLIP's own
vocabulary, the 35 shipped professions. Prints markdown.
"""

from __future__ import annotations

import argparse
import resource
import sys
import time
from collections.abc import Callable, Sequence

import numpy as np
import torch

from tests.bench.common import conditions, show, table
from tests.time_ops import sd14
from time_ops import EditOperator, Problem, PromptEdit, TokenPairs, encode_edits, solve
from time_ops.surfaces import text_projections

__all__ = ["main"]

LAM = 0.1


@torch.no_grad()
def edit_as_published(layers: Sequence[torch.nn.Linear], pairs: Sequence[TokenPairs], lam: float) -> None:
    """diffusers' `edit_model` from its token correspondence on, several professions as several more augmentations."""
    contexts, values = [], []
    for pair in pairs:
        split = (pair.source.split(sd14.POSITIONS), pair.destinations[0].split(sd14.POSITIONS))
        for context, target in zip(*split, strict=True):
            contexts.append(context)
            values.append([layer(target) for layer in layers])
    for number, layer in enumerate(layers):
        mat1 = lam * layer.weight
        mat2 = lam * torch.eye(layer.weight.shape[1])
        for context, of_layers in zip(contexts, values, strict=True):
            column, row = context[:, :, None], context[:, None, :]
            mat1 += (of_layers[number][:, :, None] @ row).sum(dim=0)
            mat2 += (column @ row).sum(dim=0)
        layer.weight = torch.nn.Parameter(mat1 @ torch.inverse(mat2))


class Model:
    """The UNet, and a way back to its first weights, which no clock counts."""

    def __init__(self) -> None:
        self.unet = sd14.unet()
        self.layers = [p.layer for p in text_projections(self.unet)]
        self._first = [layer.weight.detach().clone() for layer in self.layers]

    def timed(self, act: Callable[[], object]) -> float:
        for layer, weight in zip(self.layers, self._first, strict=True):
            layer.weight = torch.nn.Parameter(weight.clone())
        start = time.perf_counter()
        act()
        return time.perf_counter() - start


def measure(pairs: Sequence[TokenPairs], published: int, repeats: int) -> dict[str, list[float]]:
    """Seconds of every way, `repeats` times, by turns; `published` professions is the most that the loop is given."""
    model, one = Model(), pairs[:1]
    start = time.perf_counter()
    problem = Problem(pairs)
    seconds: dict[str, list[float]] = {"prepare": [time.perf_counter() - start]}
    solved: list[EditOperator] = [solve(pairs, LAM)]
    random = np.random.default_rng(0)

    def ours(some: Sequence[TokenPairs]) -> None:
        solve(some, LAM).fold_into(model.unet)

    ways: dict[str, Callable[[], object]] = {
        "ours 1": lambda: ours(one),
        "ours all": lambda: ours(pairs),
        "solve all": lambda: solve(pairs, LAM),
        "new lams": lambda: problem.solve(random.uniform(LAM, 10 * LAM, len(pairs)).tolist()),
        "fold": lambda: solved[0].fold_into(model.unet),
        "published 1": lambda: edit_as_published(model.layers, one, LAM),
        "published few": lambda: edit_as_published(model.layers, pairs[:published], LAM),
    }
    for act in list(ways.values())[:-1]:
        model.timed(act)
    for repeat in range(repeats):
        for name, act in ways.items():
            seconds.setdefault(name, []).append(model.timed(act))
            sys.stderr.write(f"{repeat + 1}/{repeats} {name}: {seconds[name][-1]:.3f} s\n")
    few = zip(seconds["published 1"], seconds["published few"], strict=True)
    seconds["published all"] = [a + (b - a) / (published - 1) * (len(pairs) - 1) for a, b in few]
    return seconds


def measure_wide(d: int, positions: int, wordings: int, edits: Sequence[PromptEdit]) -> str:
    """Seconds and peak memory of one `solve` at any width, of random token pairs: no text encoder is needed."""
    g = torch.Generator().manual_seed(0)
    templates = tuple(f"{{source}} {i}" for i in range(wordings))
    pairs = []
    for edit in edits:
        source = torch.randn(wordings * positions, d, generator=g)
        pairs.append(TokenPairs(edit, source, (source + torch.randn(source.shape, generator=g))[None], templates))
    wall, cpu = time.perf_counter(), time.process_time()
    solve(pairs, LAM * len(pairs[0].source))
    wall, cpu = time.perf_counter() - wall, time.process_time() - cpu
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024**2
    held = sum(p.source.nbytes + p.destinations.nbytes for p in pairs) / 1024**3
    row = [f"{wall:.3g}", f"{cpu:.3g}", f"{peak:.2f}", f"{held:.2f}"]
    columns = ["seconds", "CPU-seconds", "process's peak, GiB", "of it token pairs, GiB"]
    shape = {"d": d, "positions": positions, "wordings": wordings, "threads": torch.get_num_threads()}
    return table(columns, {f"solve, {len(pairs)} professions": row}) + "\n\n" + conditions(**shape)


def report(seconds: dict[str, list[float]], count: int, published: int, encoding: float, repeats: int) -> str:
    """Markdown: the table, then its conditions."""

    def ratio(way: str, to: str) -> str:
        return show([b / a for a, b in zip(seconds[way], seconds[to], strict=True)])

    ways = {
        "published, 1 profession": ("published 1", None),
        "ours, 1 profession: solve and fold": ("ours 1", "published 1"),
        f"published, {count} professions (scaled)": ("published all", None),
        f"ours, {count} professions: solve and fold": ("ours all", "published all"),
        f"ours, {count} professions: solve alone": ("solve all", None),
        f"ours, {count} professions: a new lam for each": ("new lams", None),
        "ours: fold alone": ("fold", None),
    }
    rows = {name: [show(seconds[way]), ratio(way, to) if to else ""] for name, (way, to) in ways.items()}
    stated = conditions(
        threads=torch.get_num_threads(),
        published_measured_at=f"1 and {published} professions ({show(seconds['published few'])} s)",
        encoding_apart=f"{encoding:.3g} s once",
        preparing_for_new_lams=f"{seconds['prepare'][0]:.3g} s once",
        repeats=f"{repeats}, alternating",
    )
    below = f"Median [least, most]; times as fast within each repeat. {stated}"
    return table(["seconds", "times as fast as published"], rows) + "\n\n" + below


def main(arguments: Sequence[str] | None = None) -> None:
    """Print one table in markdown."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--professions", type=int, default=35)
    parser.add_argument(
        "--published", type=int, default=3, help="professions that the published loop is given; 2 or more"
    )
    parser.add_argument("--layers", type=int, default=12, help="of the text encoder")
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--wide", type=int, metavar="D", help="instead: one solve of random pairs of this width")
    parser.add_argument("--positions", type=int, default=333, help="of --wide: positions of a prompt; SD3 has 333")
    parser.add_argument("--wordings", type=int, default=4, help="of --wide: wordings of each edit")
    parser.add_argument("--threads", type=int, help="default: torch's own")
    given = parser.parse_args(arguments)
    if given.threads:
        torch.set_num_threads(given.threads)
    if given.wide:
        edits = sd14.profession_edits()[: given.professions]
        sys.stdout.write(measure_wide(given.wide, given.positions, given.wordings, edits) + "\n")
        return
    pipe, edits = sd14.text_pipeline(given.layers), sd14.profession_edits()[: given.professions]
    start = time.perf_counter()
    pairs = encode_edits(pipe, edits)
    encoding = time.perf_counter() - start
    seconds = measure(pairs, given.published, given.repeats)
    sys.stdout.write(report(seconds, len(pairs), given.published, encoding, given.repeats) + "\n")


if __name__ == "__main__":
    main()
