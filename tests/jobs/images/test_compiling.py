"""Whether the UNet is compiled: by how long the run is, and by what the worker's device is."""

from pathlib import Path

import pytest
import torch

from jobs.config import SamplerConfig, load_config
from jobs.images.compiling import compiles, for_images, is_worth_compiling
from jobs.models.pipelines import compile_unet

SD = SamplerConfig(height=512, width=512, steps=50)


def test_a_run_has_to_be_long_enough_to_pay_for_compiling() -> None:
    assert is_worth_compiling(SD, 1200)
    assert not is_worth_compiling(SD, 1199)
    # Half the steps and a quarter of the pixels make an image an eighth of the work.
    assert is_worth_compiling(SamplerConfig(height=256, width=256, steps=25), 9600)
    assert not is_worth_compiling(SamplerConfig(height=32, width=32, steps=10), 100_000)


def test_only_half_precision_on_a_gpu_with_a_c_compiler_is_compiled(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    compiler = tmp_path / "cc"
    compiler.touch(mode=0o755)
    monkeypatch.delenv("CC", raising=False)
    monkeypatch.setenv("PATH", str(tmp_path))
    assert compiles(SD, "cuda", "bfloat16")
    assert not compiles(SD, "cuda", "float32")
    assert not compiles(SD, "cpu", "bfloat16")
    compiler.unlink()
    assert not compiles(SD, "cuda", "bfloat16")
    for said in (True, False):  # what is asked for holds anywhere
        assert compiles(SD.model_copy(update={"compile": said}), "cpu", "float32") is said


def test_compiling_leaves_the_pipeline_as_it_was_but_for_its_unet() -> None:
    class Pipe:
        unet = torch.nn.Linear(2, 2)

    compile_unet(Pipe)
    assert Pipe.unet._compiled_call_impl is not None
    assert list(Pipe.unet.state_dict()) == ["weight", "bias"]


def test_a_short_run_is_not_compiled_and_what_is_asked_for_is_left_alone() -> None:
    config = load_config("", flags={"manifest": "m", "model": "m", "classifier": "c", "output": "o"})
    assert config.sampler.compile == "auto"
    assert for_images(config, 10).sampler.compile is False
    assert for_images(config, 100_000) == config
    asked = config.model_copy(update={"sampler": config.sampler.model_copy(update={"compile": True})})
    assert for_images(asked, 10) == asked
