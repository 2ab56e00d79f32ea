"""Stable Diffusion 1.x and 2.x with a mixture of edits: each image's seed picks the edit that draws it.

    from pipeline import MixturePipeline                       # with the mixture's folder in sys.path
    pipe = MixturePipeline.from_pretrained(BASE, mixture=FOLDER)
    generators = [torch.Generator().manual_seed(seed) for seed in range(4)]
    pipe(["a photo of a CEO"] * 4, generator=generators).images; pipe.drawn_by

BASE is the model that the mixture was made for, unedited. One component of a mixture is no debiased model: what was
audited is the whole, with this route. It needs torch, safetensors, diffusers and transformers only.
"""

import hashlib
import inspect
import json
import re
import sys
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from diffusers import AutoencoderKL, StableDiffusionPipeline, UNet2DConditionModel
from diffusers.pipelines.stable_diffusion.safety_checker import StableDiffusionSafetyChecker
from diffusers.schedulers import KarrasDiffusionSchedulers
from safetensors import SafetensorError, safe_open
from transformers import CLIPImageProcessor, CLIPTextModel, CLIPTokenizer, CLIPVisionModelWithProjection

__all__ = ["MixturePipeline", "Routed", "weights_digest"]

ROUTE_VERSION = 1
FORMAT, FORMAT_POOLED = "evenhand-mixture/1", "evenhand-mixture/2"
FILE = "mixture.safetensors"
# What reads the text: cross-attention and SDXL's layer of the pooled embedding, and the two layers of SD3 and FLUX.
ATTENTION, POOLED = ("attn2.to_k.weight", "attn2.to_v.weight"), "add_embedding.linear_1.weight"
JOINT, POOLED_JOINT = ("context_embedder.weight",), "time_text_embed.text_embedder.linear_1.weight"
# What decides a text encoder's embeddings, beside the weights, and what else decides a T5's.
FIELDS = (
    *("model_type", "hidden_size", "intermediate_size", "num_hidden_layers", "num_attention_heads", "hidden_act"),
    *("layer_norm_eps", "max_position_embeddings", "use_attention_mask"),
)
T5_FIELDS = ("d_kv", "d_ff", "feed_forward_proj", "relative_attention_num_buckets", "relative_attention_max_distance")


class Routed:
    """What the mixture pipelines of all families share: components, their weights, and what embeddings pass through.

    Attributes:
        labels: of the components, in the order of their weights.
        drawn_by: label of the component that drew each image of the last call.
    """

    labels: list[str]
    drawn_by: list[str]

    def take(self, mixture: str | None, any_base: bool) -> None:
        """Read a mixture, and refuse one that is not for this model."""
        metadata, operators, pooled = _read(mixture)
        header = json.loads(metadata["evenhand"])
        self.labels = [str(component["label"]) for component in header["components"]]
        self.drawn_by = []
        self._weights: list[float] = header["weights"]
        self._professions: dict[str, list[float]] = dict(header["professions"])
        self._shifts = [_shifts_of(operators), [] if pooled is None else _shifts_of(pooled)]
        self._placed: dict[tuple[torch.device, bool], list[torch.Tensor]] = {}
        _check_model(self, header, metadata, any_base, None if pooled is None else pooled.shape[-1])

    def component_of(self, seed: int, prompt: str = "", place: int = 0) -> str:
        """Label of the component that draws an image; `place` among those drawn from one generator in one call."""
        return self.labels[self._chosen([(seed, place)], [prompt])[0]]

    def save_pretrained(self, *_: Any, **__: Any) -> None:
        """Refuse: a folder of this pipeline would hold the unedited model.

        Raises:
            NotImplementedError: always.
        """
        raise NotImplementedError("keep the base model and the mixture's folder: saved here, it would be unedited")

    def _route(
        self, asked: dict[str, Any], seeds: Sequence[int] | None, route_prompts: Sequence[str] | str | None
    ) -> list[int]:
        """Index of each image's component; the generators in `asked` are made where there are none."""
        prompt, embeds = asked["prompt"], asked["prompt_embeds"]
        if (prompt is None) == (embeds is None):
            raise ValueError("give prompt or prompt_embeds, one of them")
        count = (1 if isinstance(prompt, str) else len(prompt)) if embeds is None else embeds.shape[0]
        each = asked["num_images_per_prompt"] or 1
        asked["generator"], numbers = _seeded(asked["generator"], seeds, count * each)
        return self._chosen(numbers, _texts(route_prompts, prompt, count, each))

    def _chosen(self, numbers: Iterable[tuple[int, int]], texts: Iterable[str]) -> list[int]:
        """Index of each image's component, by its seed and place, and its prompt."""
        return [
            pick(unit(seed, place), weights_of(text, self._weights, self._professions))
            for (seed, place), text in zip(numbers, texts, strict=True)
        ]

    def _edited(
        self, embeds: torch.Tensor | None, chosen: Sequence[int], *, pooled: bool = False
    ) -> torch.Tensor | None:
        """[images, n, d] or [images, p], each through its own component; multiplied in float64, cast once."""
        if embeds is None or not self._shifts[pooled]:
            return embeds
        if len(embeds) != len(chosen):
            raise ValueError(f"{len(embeds)} embeddings for {len(chosen)} images: give one for each")
        device = embeds.device
        if (device, pooled) not in self._placed:
            wide = torch.float32 if device.type == "mps" else torch.float64
            self._placed[device, pooled] = [shift.to(device, wide) for shift in self._shifts[pooled]]
        out = torch.empty_like(embeds)
        for k, shift in enumerate(self._placed[device, pooled]):
            rows = [i for i, c in enumerate(chosen) if c == k]
            if rows:
                plain = embeds[rows].to(shift.dtype)
                out[rows] = (plain + plain @ shift.T).to(embeds.dtype)
        return out


class MixturePipeline(Routed, StableDiffusionPipeline):
    """A base model and K operators; an image's embeddings pass through the one that its seed picks.

    Args:
        vae: as for `StableDiffusionPipeline`; so are the next eight.
        text_encoder: .
        tokenizer: .
        unet: .
        scheduler: .
        safety_checker: .
        feature_extractor: .
        image_encoder: .
        requires_safety_checker: .
        mixture: the mixture's folder, or its file; None: the folder that this file lies in.
        any_base: draw with another UNet than the one that was audited, as a fine-tuned one; nobody audited that.

    Attributes:
        labels: of the components, in the order of their weights.
        drawn_by: label of the component that drew each image of the last call.
    """

    def __init__(
        self,
        vae: AutoencoderKL,
        text_encoder: CLIPTextModel,
        tokenizer: CLIPTokenizer,
        unet: UNet2DConditionModel,
        scheduler: KarrasDiffusionSchedulers,
        safety_checker: StableDiffusionSafetyChecker,
        feature_extractor: CLIPImageProcessor,
        image_encoder: CLIPVisionModelWithProjection | None = None,
        requires_safety_checker: bool = True,
        mixture: str | None = None,
        any_base: bool = False,
    ) -> None:
        super().__init__(
            vae,
            text_encoder,
            tokenizer,
            unet,
            scheduler,
            safety_checker,
            feature_extractor,
            image_encoder,
            requires_safety_checker,
        )
        self.take(mixture, any_base)

    @torch.no_grad()
    def __call__(
        self,
        *args: Any,
        seeds: Sequence[int] | None = None,
        route_prompts: Sequence[str] | str | None = None,
        **options: Any,
    ) -> Any:
        """Draw images. Arguments as of `StableDiffusionPipeline`, and two more.

        Embeddings that are given must be the base model's: they pass through the components here.

        Args:
            args: see there.
            seeds: of each image, to route by; None: as the generators say. Without generators they seed these too.
            route_prompts: of each image or one for all, by which professions with weights of their own are found; None:
                the prompts. Of use where embeddings are given.
            options: see there.

        Raises:
            ValueError: a generator that has been drawn from before, or not one seed for each image.
        """
        call = inspect.signature(StableDiffusionPipeline.__call__).bind(self, *args, **options)
        call.apply_defaults()
        asked = {name: value for name, value in call.arguments.items() if name not in ("self", "kwargs")}
        chosen = self._route(asked, seeds, route_prompts)
        guided = asked["guidance_scale"] > 1 and self.unet.config.time_cond_proj_dim is None
        made = self.encode_prompt(
            asked["prompt"],
            self._execution_device,
            asked["num_images_per_prompt"] or 1,
            guided,
            asked["negative_prompt"],
            prompt_embeds=asked["prompt_embeds"],
            negative_prompt_embeds=asked["negative_prompt_embeds"] if guided else None,
            lora_scale=(asked["cross_attention_kwargs"] or {}).get("scale"),
            clip_skip=asked["clip_skip"],
        )
        edited = [self._edited(plain, chosen) for plain in made]
        asked |= {"prompt": None, "negative_prompt": None, "num_images_per_prompt": 1}
        asked |= {"prompt_embeds": edited[0], "negative_prompt_embeds": edited[1]}
        found = super().__call__(**asked, **call.arguments.get("kwargs", {}))
        self.drawn_by = [self.labels[k] for k in chosen]
        return found


def _shifts_of(operators: torch.Tensor) -> list[torch.Tensor]:
    """A - I of each."""
    identity = torch.eye(operators.shape[-1], dtype=torch.float64)
    return [operator.double() - identity for operator in operators]


def _read(mixture: str | Path | None) -> tuple[dict[str, str], torch.Tensor, torch.Tensor | None]:
    """The mixture's header, its operators [K, d, d] and pooled ones [K, p, p], once they are known to be whole."""
    path = Path(__file__).parent if mixture is None else Path(mixture)
    path = path / FILE if path.is_dir() else path
    if not path.is_file():
        raise ValueError(f"there is no mixture at {path}: give its folder or its {FILE} as mixture=...")
    try:
        with safe_open(path, framework="pt") as file:
            metadata = file.metadata() or {}
            names = list(file.keys())
            operators, pooled = (file.get_tensor(name) if name in names else None for name in ("operators", "pooled"))
    except SafetensorError as error:
        raise ValueError(f"{path.name} is damaged: fetch it again, and compare it with SHA256SUMS ({error})") from error
    if operators is None or "evenhand" not in metadata:
        raise ValueError(f"{path.name} is no mixture: one operator, or another file")
    try:
        _check_header(path, json.loads(metadata["evenhand"]), operators, pooled)
    except (LookupError, TypeError, AttributeError, OverflowError, RecursionError) as error:
        raise ValueError(f"{path.name} is damaged: fetch it again, and compare it with SHA256SUMS") from error
    return metadata, operators, pooled


def _check_header(path: Path, header: Any, operators: torch.Tensor, pooled: torch.Tensor | None) -> None:
    """Refuse a file whose header does not say that these tensors can be drawn with here."""
    expected = FORMAT if pooled is None else FORMAT_POOLED
    if (header.get("format"), header.get("route")) != (expected, ROUTE_VERSION):
        raise ValueError(
            f"{path.name} is {header.get('format')!r}, routed by version {header.get('route')!r}; this file draws "
            f"{expected!r}, version {ROUTE_VERSION}: take the pipeline.py that lies beside the mixture"
        )
    wrong = [
        each.ndim != 3 or len(each) != len(header["components"]) or not torch.isfinite(each).all()
        for each in (operators, pooled)
        if each is not None
    ]
    if any(wrong):
        raise ValueError(f"{path.name} is damaged: fetch it again, and compare it with SHA256SUMS")
    if any(unit(seed, place) != u for seed, place, u in header["route_vectors"]):
        raise ValueError(f"{path.name} is routed otherwise than this file routes, by its test vectors")


def _check_model(
    pipe: Any, header: Mapping[str, Any], metadata: Mapping[str, str], any_base: bool, pooled: int | None
) -> None:
    """Refuse a model that the mixture can't be for: another width, text encoder, UNet or transformer."""
    joint = getattr(pipe, "transformer", None) is not None
    model, name = (pipe.transformer, "transformer") if joint else (pipe.unet, "UNet")
    width, d = model.config["joint_attention_dim" if joint else "cross_attention_dim"], header["d"]
    if width != d:
        raise ValueError(f"this model reads embeddings of width {width}, the mixture was made for {d}: another model")
    steps = [step for component in header["components"] for step in component["steps"]]
    encoder = next((step["encoder"] for step in steps if step["encoder"]), None)
    both = [[getattr(pipe, part + n, None) for part in ("text_encoder", "tokenizer")] for n in ("", "_2", "_3")]
    parts = [part for part in both if None not in part]
    if encoder and parts:
        digests = [(_encoder_digests(model), _tokenizer_digest(tokenizer)) for model, tokenizer in parts]
        found = {
            kind: hashlib.sha256("\n".join(line for w, t in digests for line in (w[kind], t)).encode()).hexdigest()
            for kind in ("float16", "bfloat16")
        }
        if not any(found[kind] == encoder[kind] for kind in found):
            raise ValueError("this model's text encoder is not the one that the mixture was solved for: another model")
    names = (*(JOINT if joint else ATTENTION), *(() if pooled is None else (POOLED_JOINT if joint else POOLED,)))
    read = sorted((key, w) for key, w in model.named_parameters() if key.endswith(names))
    known = {kind: metadata.get(f"evenhand.projections_{kind}") for kind in ("float16", "bfloat16")}
    if not any_base and all(known.values()) and all(weights_digest(b"", read, kind) != known[kind] for kind in known):
        raise ValueError(
            f"this model's {name} is not the one that was audited: an edited one would be edited twice, as a component "
            f"of the mixture. Give the base model, or any_base=True for another {name} that nobody has audited with it"
        )


def weights_digest(head: bytes, weights: Iterable[tuple[str, torch.Tensor]], kind: str) -> str:
    """sha256 in hex of weights' values, cast to half precision: a model loaded in it is the same model."""
    sha = hashlib.sha256(head)
    for name, weight in weights:
        raw = weight.detach().to("cpu", getattr(torch, kind)).contiguous().reshape(-1).view(torch.uint8).numpy()
        if sys.byteorder == "big":
            raw = raw.reshape(-1, 2)[:, ::-1]
        sha.update(f"\n{name} {tuple(weight.shape)}\n".encode() + raw.tobytes())
    return sha.hexdigest()


def _encoder_digests(encoder: Any) -> dict[str, str]:
    fields = (*FIELDS, *T5_FIELDS) if encoder.config.model_type == "t5" else FIELDS
    config = {field: getattr(encoder.config, field, None) for field in fields}
    head = json.dumps(config, sort_keys=True, default=str).encode()
    weights = sorted(encoder.named_parameters(), key=lambda pair: pair[0])
    return {kind: weights_digest(head, weights, kind) for kind in ("float16", "bfloat16")}


def _tokenizer_digest(tokenizer: Any) -> str:
    merges: list[str] = []
    pieces: dict[str, Any] = {}
    backend = getattr(tokenizer, "backend_tokenizer", None)
    if backend is not None:
        model = json.loads(backend.to_str())["model"]
        merges = [merge if isinstance(merge, str) else " ".join(merge) for merge in model.get("merges") or []]
        pieces = {"scores": model["vocab"]} if model.get("type") == "Unigram" else {}
    facts = {
        "vocabulary": sorted(tokenizer.get_vocab().items()),
        "merges": merges,
        "special": [tokenizer.bos_token_id, tokenizer.eos_token_id, tokenizer.pad_token_id],
        "positions": int(tokenizer.model_max_length),
        **pieces,
    }
    return hashlib.sha256(json.dumps(facts, sort_keys=True).encode()).hexdigest()


def _seeded(given: Any, seeds: Sequence[int] | None, images: int) -> tuple[Any, list[tuple[int, int]]]:
    """The generators to draw with, and each image's seed and place."""
    if seeds is not None:
        numbers = [int(seed) for seed in seeds]
        if len(numbers) != images:
            raise ValueError(f"{len(numbers)} seeds for {images} images: give one for each")
        made = [torch.Generator().manual_seed(seed) for seed in numbers] if given is None else given
        return made, [(seed, 0) for seed in numbers]
    if given is None:
        given = torch.Generator().manual_seed(int(torch.randint(2**63 - 1, ())))
    listed = list(given) if isinstance(given, list | tuple) else [given]
    used = [g for g in listed if not torch.equal(g.get_state(), _fresh(g).get_state())]
    if used or len({id(g) for g in listed}) < len(listed):
        raise ValueError(
            "a generator has been drawn from before: its seed would pick the same component for every image. Make one "
            "for each image, torch.Generator().manual_seed(seed), or say by what to route: seeds=[...]"
        )
    if not isinstance(given, list | tuple):
        return given, [(given.initial_seed(), place) for place in range(images)]
    if len(listed) != images:
        raise ValueError(f"{len(listed)} generators for {images} images: give one for each, or one for all")
    return listed, [(g.initial_seed(), 0) for g in listed]


def _fresh(generator: torch.Generator) -> torch.Generator:
    return torch.Generator(generator.device).manual_seed(generator.initial_seed())


def _texts(given: Sequence[str] | str | None, prompt: Sequence[str] | str | None, count: int, each: int) -> list[str]:
    """Each image's prompt to look weights up by."""
    if given is not None:
        return [given] * (count * each) if isinstance(given, str) else list(given)
    prompts = [prompt or ""] * count if prompt is None or isinstance(prompt, str) else list(prompt)
    return [text for text in prompts for _ in range(each)]


# The route, version 1: the same functions as route.py of other forms of this mixture.


def unit(seed: int, place: int = 0) -> float:
    """The number in [0, 1) of an image, by its generator's seed and its place among the images drawn from that."""
    told = (seed % 2**64).to_bytes(8, "little") + place.to_bytes(8, "little")
    return (int.from_bytes(hashlib.blake2b(told, digest_size=8).digest(), "big") >> 11) * 2.0**-53


def pick(u: float, weights: Sequence[float]) -> int:
    """Index of the component that draws number u; a weight of 0 draws nothing."""
    last = max(k for k, weight in enumerate(weights) if weight > 0)
    total = 0.0
    for k, weight in enumerate(weights):
        total += weight
        if weight > 0 and (u < total or k == last):
            return k
    return last


def prompt_words(text: str) -> tuple[str, ...]:
    """The words by which a prompt is looked up."""
    return tuple(re.findall(r"\w+", text.casefold()))


def weights_of(prompt: str, default: Sequence[float], professions: Mapping[str, Sequence[float]]) -> Sequence[float]:
    """The weights of the longest source that a prompt names, of several the first; of none, the default."""
    table = {}
    for source, weights in professions.items():
        words = prompt_words(source)
        table[words[1:] if len(words) > 1 and words[0] in ("a", "an", "the") else words] = weights
    said = prompt_words(prompt)
    for length in range(min(max(map(len, table), default=0), len(said)), 0, -1):
        for start in range(len(said) - length + 1):
            if said[start : start + length] in table:
                return table[said[start : start + length]]
    return default
