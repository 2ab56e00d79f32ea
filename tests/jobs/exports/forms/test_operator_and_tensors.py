from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from jobs.exports.forms.operator_file import LOADER, check_transform, write_loader, write_operator
from jobs.exports.forms.tensors import write_tensors
from tests.jobs.exports.conftest import HEADER, Model, image_of
from tests.test_architecture import imported
from time_ops import EditError, EditOperator
from time_ops.records import SolveInputs


def shipped(folder: Path) -> Any:
    """`edited_prompt` of the text as it lies beside the operator."""
    namespace: dict[str, Any] = {}
    exec((folder / LOADER).read_text(encoding="utf-8"), namespace)  # noqa: S102 - it is what users run
    return namespace["edited_prompt"]


def test_the_shipped_loader_gives_the_edited_models_embeddings_and_image(model: Model, tmp_path: Path) -> None:
    operator, pipe = model.operator(), model.pipe()
    path = write_operator(operator, tmp_path / "operator.safetensors", HEADER).path
    write_loader(tmp_path / LOADER)
    found = shipped(tmp_path)(pipe, "a ceo", path=str(path))
    names = ["prompt_embeds", "negative_prompt_embeds", "pooled_prompt_embeds", "negative_pooled_prompt_embeds"]
    made = pipe.encode_prompt(prompt="a ceo", device="cpu", num_images_per_prompt=1, do_classifier_free_guidance=True)
    for name, plain in zip(names, made, strict=False):
        transform = operator.transform_pooled if "pooled" in name else operator.transform
        assert torch.equal(found[name], transform(plain)), name
    assert list(found) == names[: len(made)]
    drawn = image_of(pipe, **found)
    operator.fold_into(pipe.unet)
    assert torch.allclose(drawn, image_of(pipe), atol=1e-4)


def test_the_loader_needs_nothing_of_ours(tmp_path: Path) -> None:
    assert imported(write_loader(tmp_path / LOADER).path) == {"inspect", "typing", "torch", "safetensors"}


def test_our_own_reader_takes_the_file_with_its_longer_header(sd: Model, tmp_path: Path) -> None:
    operator = sd.operator()
    path = write_operator(operator, tmp_path / "operator.safetensors", HEADER).path
    found = EditOperator.load(path)
    assert torch.equal(found.matrix, operator.matrix)
    assert found.digest == operator.digest
    data = path.read_bytes()
    metadata = json.loads(data[8 : 8 + int.from_bytes(data[:8], "little")])["__metadata__"]
    assert metadata.items() >= HEADER.items()


def test_a_values_only_operator_is_not_shipped_as_a_transform(sd: Model) -> None:
    check_transform(sd.operator())
    with pytest.raises(EditError, match="keys read them unchanged"):
        check_transform(replace(sd.operator(), steps=(SolveInputs((), values_only=True),)))


@pytest.mark.parametrize("values_only", [False, True])
def test_the_tensors_load_into_the_base_model(model: Model, tmp_path: Path, values_only: bool) -> None:
    operator = replace(model.operator(), steps=(SolveInputs((), values_only=values_only),))
    written = write_tensors(model.folder / "unet", operator, tmp_path / "tensors.safetensors", HEADER)
    count = model.projections // (2 if values_only else 1) + model.edited - model.projections
    pipe, folded = model.pipe(), model.pipe()
    missing, unexpected = pipe.unet.load_state_dict(load_file(written.path), strict=False)
    assert unexpected == []
    assert len(missing) == len(pipe.unet.state_dict()) - count
    assert written.tensors == count
    operator.fold_into(folded.unet)
    wanted = folded.unet.state_dict()
    assert all(torch.equal(weight, wanted[name]) for name, weight in pipe.unet.state_dict().items())
