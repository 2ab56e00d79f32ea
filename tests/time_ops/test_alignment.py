from __future__ import annotations

import pickle
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from manifests import read_manifest
from manifests.build import shipped_manifest_path
from tests.time_ops import sd14
from time_ops import DEFAULT_AUGMENTATIONS, EditError
from time_ops.alignment import align_prompts, align_tokens, token_ids
from time_ops.prompts import augment


def published(tokenizer: Any, source: str, destination: str, n: int) -> list[int]:
    """The published rule, written down again from its description; IndexError where it is undefined."""
    a, b = tokenizer(source).input_ids, tokenizer(destination).input_ids
    article = tokenizer("a").input_ids[1]
    a = [article if tokenizer.decode(t) == "an" else t for t in a]
    b = [article if tokenizer.decode(t) == "an" else t for t in b]
    places: list[int] = []
    j = 0
    for token in a:
        while b[j] != token:
            j += 1
        places.append(j)
        j += 1
    while j < n:
        places.append(j)
        j += 1
    return places + [n - 1] * (n - len(places))


GOOD = [
    ("a ceo", "a female ceo"),
    ("an engineer", "a female engineer"),
    ("a CEO", "an old CEO"),
    ("a kangaroo", "a black kangaroo at work"),
    ("", "a cat"),
    ("a cat", "a cat"),
    ("a a cat", "a a a cat"),
    ("A photo of a ceo", "A photo of a male ceo"),
    ("a kanban", "an ananas kanban"),
]


@pytest.fixture(scope="module")
def clip() -> Any:
    return sd14.clip_tokenizer()


class TestClipsOwnVocabulary:
    def test_is_what_it_is_said_to_be(self, clip: Any) -> None:
        # As CLIP's own code gives them.
        assert clip("a photo of a cat").input_ids == [49406, 320, 1125, 539, 320, 2368, 49407]
        assert len(clip) == sd14.VOCABULARY
        assert clip.pad_token_id == 49407

    def test_the_rule_for_all_professions_destinations_and_augmentations(self, clip: Any) -> None:
        professions = read_manifest(shipped_manifest_path()).professions
        compared = 0
        for profession in professions:
            for template in DEFAULT_AUGMENTATIONS:
                source = augment(template, profession.source)
                for destination in profession.destinations:
                    target = augment(template, destination.prompt)
                    expected = published(clip, source, target, sd14.POSITIONS)
                    for alignment in ("published", "lcs"):
                        found = align_prompts(clip, source, target, alignment=alignment)
                        assert found.tolist() == expected, (source, target, alignment)
                    # One word is added: its position is met by none, and the last one twice.
                    assert len(set(expected)) == sd14.POSITIONS - 1
                    compared += 1
        assert compared == 35 * 2 * 4

    def test_where_the_rule_is_not_defined(self, clip: Any) -> None:
        with pytest.raises(EditError, match="lacks 'paralegal'"):
            align_prompts(clip, "a paralegal", "a female lawyer")
        found = align_prompts(clip, "a male nurse at work", "a female nurse at work", alignment="lcs")
        assert found.tolist() == list(range(sd14.POSITIONS))


@pytest.mark.parametrize(("source", "destination"), GOOD)
@pytest.mark.parametrize("alignment", ["published", "lcs"])
def test_equals_the_published_rule(tokenizer: Any, source: str, destination: str, alignment: Any) -> None:
    found = align_prompts(tokenizer, source, destination, alignment=alignment)
    assert found.tolist() == published(tokenizer, source, destination, tokenizer.model_max_length)


WORD = st.sampled_from(["a", "an", "ceo", "cat", "zebra", "old", "engineer"])


@settings(max_examples=200, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.lists(WORD, max_size=4), st.lists(WORD, max_size=4))
def test_equals_it_wherever_it_is_defined_and_never_fails_otherwise(tokenizer: Any, a: list[str], b: list[str]) -> None:
    source, destination, n = " ".join(a), " ".join(b), tokenizer.model_max_length
    if max(len(token_ids(tokenizer, p)) for p in (source, destination)) > n:
        return
    loose = align_prompts(tokenizer, source, destination, alignment="lcs")
    assert loose.shape == (n,)
    assert (loose >= 0).all()
    assert (loose < n).all()
    assert (np.diff(loose) >= 0).all()
    try:
        expected = published(tokenizer, source, destination, n)
    except IndexError:
        with pytest.raises(EditError, match="can't be aligned") as caught:
            align_prompts(tokenizer, source, destination)
        assert repr(source) in str(caught.value)
        assert repr(destination) in str(caught.value)
    else:
        assert align_prompts(tokenizer, source, destination).tolist() == expected == loose.tolist()


def test_the_tokenizer_is_as_these_tests_take_it(tokenizer: Any) -> None:
    for word in ("a", "an", "ceo", "cat", "engineer", "female"):
        assert len(token_ids(tokenizer, word)) == 3
    assert len(token_ids(tokenizer, "zebra kangaroo")) > 4


def test_worked_example(tokenizer: Any) -> None:
    # <s> a ceo </s> ...  against  <s> a female ceo </s> ...: "female" is dropped, the tail moves on by one.
    assert align_prompts(tokenizer, "a ceo", "a female ceo", positions=8).tolist() == [0, 1, 3, 4, 5, 6, 7, 7]


def test_lcs_maps_a_replaced_word_to_what_replaced_it(tokenizer: Any) -> None:
    found = align_prompts(tokenizer, "a male nurse at work", "a female nurse at work", alignment="lcs")
    assert found[:8].tolist() == [0, 1, 2, 3, 4, 5, 6, 7]
    # "nurse" is gone: its position takes the last token before the end marker.
    assert align_prompts(tokenizer, "a male nurse", "a male", alignment="lcs")[:5].tolist() == [0, 1, 2, 2, 3]


def test_errors_name_prompts_and_words_and_pickle(tokenizer: Any) -> None:
    with pytest.raises(EditError, match="lacks 'zebra'") as lacking:
        align_prompts(tokenizer, "a zebra", "a female ceo")
    assert str(pickle.loads(pickle.dumps(lacking.value))) == str(lacking.value)  # noqa: S301
    with pytest.raises(EditError, match="in another order 'cat'"):
        align_prompts(tokenizer, "black cat", "cat black")
    with pytest.raises(EditError, match="longer than the encoder's 24 positions"):
        align_prompts(tokenizer, "a cat", "a " * 30)


def test_refuses_an_unknown_rule() -> None:
    with pytest.raises(EditError, match="unknown alignment 'fuzzy'"):
        align_tokens([0, 1], [0, 1], 4, alignment="fuzzy")  # type: ignore[arg-type]
