"""What is said where images are drawn again for a classifier, although they were drawn before for another one."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import replace

from infra.storage import ObjectStore
from jobs.config import RunConfig
from jobs.images.judging import Seen, classifier_name, seen_by
from jobs.images.recipe import Recipe
from jobs.images.shards import ShardSpec, stored_keys

__all__ = ["drawn_again"]


def drawn_again(
    config: RunConfig, store: ObjectStore, recipe: Recipe, digests: Mapping[str, str], specs: Iterable[ShardSpec]
) -> str | None:
    """One sentence; None where nothing is drawn again, or nobody can know.

    Args:
        config: names the classifiers.
        store: where shards are.
        recipe: of the run.
        digests: of each model of the classifiers, see `content_digest`.
        specs: shards that the run needs.

    Raises:
        StorageError: the store can't be read.
    """
    seen = seen_by(config)
    alone = {digests[s.model]: s.model for s in seen if s == Seen(s.model)}
    if recipe.classifier in alone:
        return None
    wanted = {spec.object_key: spec for spec in specs}
    stored = stored_keys(store, wanted)
    lacking = [spec for key, spec in wanted.items() if key not in stored]
    for digest, model in alone.items():
        before = {replace(s, recipe=replace(recipe, classifier=digest)).object_key: s.count for s in lacking}
        images = sum(before[key] for key in stored_keys(store, before))
        if images:
            others = [_told(s) for s in seen if s != Seen(model)]
            return (
                f"{images:,} of these images were drawn before for {classifier_name(model)} alone; what is stored of "
                f"them are its embeddings. {' and '.join(others)} {'needs' if len(others) == 1 else 'need'} the images "
                "themselves, which are not kept, so they are drawn again"
            )
    return None


def _told(seen: Seen) -> str:
    return classifier_name(seen.model) + ("" if seen.faces is None else ", on the largest face,")
