"""Models by hub id, fetched into the hub's cache on this node. No torch; diffusers only where a pipeline is fetched."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

from huggingface_hub import hf_hub_download, is_offline_mode, snapshot_download
from huggingface_hub.errors import HfHubHTTPError, HFValidationError, LocalEntryNotFoundError

from infra.storage import StorageError
from infra.storage.patience import patiently
from time_ops.errors import ModelError

__all__ = ["CARD", "from_hub"]

CARD = "README.md"
"""A model's own card, by the hub's convention."""
_HUB_FILES = ("*.json", "*.txt", "*.model", "*.safetensors")


def from_hub(reference: str, *, pipeline: bool, patience_s: float, patterns: Sequence[str] = _HUB_FILES) -> Path:
    """A hub's model in its cache on this node.

    Args:
        reference: `name/model` or `name/model@revision`.
        pipeline: see `fetch_model`.
        patience_s: how long to try again while the hub is away.
        patterns: what to fetch of what is no pipeline.

    Raises:
        ModelError: no such model, or it can't be reached.
        StorageError: the hub is away.
    """
    name, _, revision = reference.partition("@")

    def fetch() -> Any:
        try:
            if pipeline:
                # It knows which files a pipeline needs, and costs 200 MB: only who names a hub model pays.
                from diffusers import DiffusionPipeline

                folder = DiffusionPipeline.download(name, revision=revision or None, use_safetensors=True)
                # No file that a pipeline needs: a model without one, or a hub that is away by now, is no fault.
                with suppress(HfHubHTTPError, OSError, ValueError):
                    hf_hub_download(name, CARD, revision=Path(folder).name)
                return folder
            return snapshot_download(name, revision=revision or None, allow_patterns=[*patterns])
        except (HfHubHTTPError, LocalEntryNotFoundError) as error:
            status = getattr(getattr(error, "response", None), "status_code", None)
            if not is_offline_mode() and (status is None or status == 429 or status >= 500):
                raise StorageError(f"{type(error).__name__}: {error}", retriable=True) from error
            raise

    try:
        fetched = patiently(fetch, patience_s)
    except HFValidationError as error:
        raise ModelError(f"{reference!r} is neither a folder, nor an s3:// prefix, nor a hub id") from error
    except (HfHubHTTPError, OSError, ValueError) as error:
        raise ModelError(
            f"{reference}: there is no such folder here, and the model hub did not give it ({error}); "
            "correct the name, or stage the model in a folder or under an s3:// prefix"
        ) from error
    return Path(fetched)
