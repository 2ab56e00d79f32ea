from __future__ import annotations

import hashlib
import json
import math
import pickle
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load as load_tensors
from safetensors.torch import save_file

from time_ops import EditError, EditOperator, EncoderDigest, ModelError, PromptEdit, TokenPairs, solve
from time_ops.records import EditRecord, SolveInputs

D = 16
ENCODER = EncoderDigest("e" * 64, "float32", "h" * 64, "b" * 64)


def pairs(count: int = 2, encoder: EncoderDigest | None = ENCODER) -> list[TokenPairs]:
    g = torch.Generator().manual_seed(0)
    found = []
    for i in range(count):
        source = torch.randn(10, D, generator=g)
        edit = PromptEdit(f"a p{i}", {f"a male p{i}": 0.25, f"a female p{i}": 0.75})
        found.append(TokenPairs(edit, source, source + torch.randn(2, 10, D, generator=g), encoder=encoder))
    return found


@pytest.fixture
def operator() -> EditOperator:
    kept = pairs(1)[0].source
    return solve(pairs(), [2.0, math.inf], [TokenPairs(PromptEdit("k", {"k": 1.0}), kept, kept[None], encoder=ENCODER)])


class TestDigest:
    def test_golden(self) -> None:
        # The canonical form, written out: a change of it orphans every operator that is named by its digest.
        step = SolveInputs((EditRecord("a CEO", (("a female CEO", 1.0),), 0.1, ("{source}",)),), (), ENCODER)
        operator = EditOperator(torch.eye(2), (step,))
        canonical = (
            '{"d":2,"steps":[{"edits":[{"alignment":"published","augmentations":["{source}"],'
            '"destinations":[["a female CEO",1.0]],"lam":0.1,"source":"a CEO","tokens":""}],"encoder":{"bfloat16":"'
            + "b" * 64 + '","dtype":"float32","exact":"' + "e" * 64 + '","float16":"' + "h" * 64
            + '"},"preserved":[],"values_only":false}]}'
        )  # fmt: skip
        assert operator.digest == hashlib.sha256(canonical.encode()).hexdigest()

    def test_is_of_inputs_and_not_of_the_matrix(self, operator: EditOperator) -> None:
        nudged = EditOperator(operator.matrix + 1e-12, operator.steps)
        assert nudged.digest == operator.digest
        assert nudged.checksum != operator.checksum

    @pytest.mark.parametrize(
        "change", ["lam", "share", "source", "preserve", "encoder", "values_only", "augmentations"]
    )
    def test_changes_with_every_input(self, change: str) -> None:
        base = pairs()
        kept = TokenPairs(base[0].edit, base[0].source, base[0].source.expand(2, -1, -1), encoder=ENCODER)
        first = solve(base, 1.0, [kept])
        if change == "lam":
            other = solve(base, [1.0, 1.5], [kept], 1.0)
        elif change == "share":
            other = solve([base[0].with_shares([0.5, 0.5]), base[1]], 1.0, [kept])
        elif change == "source":
            renamed = TokenPairs(PromptEdit("a q", base[0].edit.destinations), base[0].source, base[0].destinations,
                                 encoder=ENCODER)  # fmt: skip
            other = solve([renamed, base[1]], 1.0, [kept])
        elif change == "preserve":
            other = solve(base, 1.0)
        elif change == "encoder":
            another = EncoderDigest("f" * 64, "float32", "f", "f")
            other = solve(pairs(encoder=another), 1.0, [TokenPairs(kept.edit, kept.source, kept.destinations,
                                                                  encoder=another)])  # fmt: skip
        elif change == "values_only":
            other = solve(base, 1.0, [kept], values_only=True)
        else:
            changed = TokenPairs(base[0].edit, base[0].source, base[0].destinations, ("{source}", "x {source}"),
                                 encoder=ENCODER)  # fmt: skip
            other = solve([changed, base[1]], 1.0, [kept])
        assert other.digest != first.digest

    def test_destinations_in_any_order(self) -> None:
        p = pairs(1)[0]
        flipped = TokenPairs(
            PromptEdit(p.edit.source, dict(reversed(p.edit.destinations.items()))), p.source, p.destinations.flip(0),
            encoder=ENCODER,
        )  # fmt: skip
        assert solve([p], 1.0).digest == solve([flipped], 1.0).digest

    def test_rows_in_any_order(self, tmp_path: Path) -> None:
        edits = pairs(3)
        kept = [TokenPairs(PromptEdit(k, {k: 1.0}), e.source, e.source[None], encoder=ENCODER)
                for k, e in zip("xyz", edits, strict=True)]  # fmt: skip
        one = solve(edits, [1.0, 2.0, 3.0], kept)
        other = solve(edits[::-1], [3.0, 2.0, 1.0], kept[::-1])
        assert one.digest == other.digest == EditOperator.load(other.save(tmp_path / "a")).digest
        assert one.digest != solve(edits, [3.0, 2.0, 1.0], kept).digest

    def test_tokens_made_by_hand_are_part_of_it(self) -> None:
        one, other = pairs(1, None)[0], pairs(1, None)[0]
        moved = TokenPairs(other.edit, other.source + 1, other.destinations)
        assert solve([one], 1.0).digest == solve([other], 1.0).digest != solve([moved], 1.0).digest


class TestTransform:
    @pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32, torch.float64])
    def test_multiplies_wide_and_casts_once(self, operator: EditOperator, dtype: torch.dtype) -> None:
        c = torch.randn(2, 7, D, generator=torch.Generator().manual_seed(1)).to(dtype)
        found = operator.transform(c)
        assert found.dtype == dtype
        assert found.shape == c.shape
        exact = c.double() @ operator.matrix.T
        assert float((found.double() - exact).abs().max()) <= torch.finfo(dtype).eps * float(exact.abs().max())

    def test_identity_keeps_the_bits(self) -> None:
        c = torch.randn(3, D).half()
        assert torch.equal(EditOperator.identity(D).transform(c), c)

    def test_refusals(self, operator: EditOperator) -> None:
        with pytest.raises(ModelError, match="width 4, the operator 16"):
            operator.transform(torch.zeros(2, 4))
        with pytest.raises(ModelError, match="int64"):
            operator.transform(torch.zeros(2, D, dtype=torch.int64))


class TestCompose:
    def test_folding_twice_is_folding_the_composite(self, make_unet: Callable[..., Any]) -> None:
        first, second = solve(pairs(1), 0.5), solve(pairs()[1:], 0.5)
        one, other = make_unet(D).double(), make_unet(D).double()
        other.load_state_dict(one.state_dict())
        first.fold_into(one)
        second.fold_into(one)
        (first @ second).fold_into(other)
        wrong = make_unet(D).double()
        for (name, a), b in zip(one.named_parameters(), other.parameters(), strict=True):
            torch.testing.assert_close(a, b, rtol=1e-10, atol=1e-12, msg=name)
        assert not torch.allclose((first @ second).matrix, (second @ first).matrix)
        assert wrong is not one

    def test_identity_is_neutral(self, operator: EditOperator) -> None:
        for composed in (EditOperator.identity(D) @ operator, operator @ EditOperator.identity(D)):
            assert composed.digest == operator.digest
            torch.testing.assert_close(composed.matrix, operator.matrix, rtol=0, atol=1e-15)

    def test_refusals(self, operator: EditOperator) -> None:
        with pytest.raises(EditError, match="width 16 and 8"):
            _ = operator @ EditOperator.identity(8)
        with pytest.raises(EditError, match="values-only"):
            _ = operator @ solve(pairs(), 1.0, values_only=True)
        with pytest.raises(EditError, match="two text encoders"):
            _ = operator @ solve(pairs(encoder=EncoderDigest("f", "float32", "f", "f")), 1.0)


class TestFold:
    def test_reports_what_it_changed(self, operator: EditOperator, make_unet: Callable[..., Any]) -> None:
        unet = make_unet(D)
        before = {name: weight.clone() for name, weight in unet.state_dict().items()}
        fold = operator.fold_into(unet)
        changed = {n for n, w in unet.state_dict().items() if not torch.equal(w, before[n])}
        assert changed == {w.name + ".weight" for w in fold.weights}
        assert len(changed) == 8
        assert all(n.endswith(("attn2.to_k.weight", "attn2.to_v.weight")) for n in changed)
        for weight in fold.weights:
            name = weight.name + ".weight"
            expected = (before[name].double() @ operator.matrix).float()
            torch.testing.assert_close(unet.state_dict()[name], expected, rtol=1e-6, atol=1e-8)
            assert weight.relative_change > 0
        assert fold.parameters == sum(before[w.name + ".weight"].numel() for w in fold.weights)

    def test_values_only_leaves_keys(self, make_unet: Callable[..., Any]) -> None:
        unet = make_unet(D)
        fold = solve(pairs(), 1.0, values_only=True).fold_into(unet)
        assert {w.name.rpartition(".")[2] for w in fold.weights} == {"to_v"}

    def test_identity_changes_nothing(self, make_unet: Callable[..., Any]) -> None:
        unet = make_unet(D)
        before = [w.clone() for w in unet.parameters()]
        assert all(w.relative_change == 0 for w in EditOperator.identity(D).fold_into(unet).weights)
        assert all(torch.equal(a, b) for a, b in zip(before, unet.parameters(), strict=True))

    @pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
    def test_an_edit_below_the_dtypes_resolution_is_an_error(
        self, make_unet: Callable[..., Any], dtype: torch.dtype
    ) -> None:
        tiny = EditOperator(torch.eye(D, dtype=torch.float64) * (1 + 1e-7))
        with pytest.raises(ModelError, match="no weight changed"):
            tiny.fold_into(make_unet(D).to(dtype))

    def test_weights_that_do_not_take_the_edit_are_noticed(
        self, operator: EditOperator, make_unet: Callable[..., Any], monkeypatch: pytest.MonkeyPatch
    ) -> None:
        # Planted: a copy that goes nowhere, as the published pipeline's edit does.
        monkeypatch.setattr(torch.Tensor, "copy_", lambda self, *_: self)
        with pytest.raises(ModelError, match="did not take the edit"):
            operator.fold_into(make_unet(D))

    def test_overflow_changes_nothing(self, make_unet: Callable[..., Any]) -> None:
        unet = make_unet(D).half()
        before = [w.clone() for w in unet.parameters()]
        with pytest.raises(ModelError, match=r"not finite in torch\.float16"):
            EditOperator(torch.eye(D, dtype=torch.float64) * 1e9).fold_into(unet)
        assert all(torch.equal(a, b) for a, b in zip(before, unet.parameters(), strict=True))


class TestFile:
    def test_round_trip(self, operator: EditOperator, tmp_path: Path) -> None:
        path = operator.save(tmp_path / "deep" / "operator.safetensors")
        again = EditOperator.load(path)
        assert torch.equal(again.matrix, operator.matrix)
        assert again.steps == operator.steps
        assert (again.digest, again.checksum) == (operator.digest, operator.checksum)
        assert (again.condition, dict(again.versions)) == (operator.condition, dict(operator.versions))
        assert [p.name for p in path.parent.iterdir()] == ["operator.safetensors"]

    def test_bytes_are_deterministic_and_self_describing(self, operator: EditOperator, tmp_path: Path) -> None:
        path = operator.save(tmp_path / "a")
        data = path.read_bytes()
        assert data == operator.to_bytes() == EditOperator.load(path).to_bytes()
        size = int.from_bytes(data[:8], "little")
        header = json.loads(json.loads(data[8 : 8 + size])["__metadata__"]["evenhand"])
        assert header["d"] == D
        assert header["digest"] == operator.digest
        assert header["steps"][0]["encoder"]["exact"] == ENCODER.exact
        assert [e["lam"] for e in header["steps"][0]["edits"]] == [2.0, "inf"]
        assert {"torch", "numpy", "python"} <= set(header["versions"])
        assert load_tensors(data)["matrix"].dtype == torch.float64

    def test_float32_is_half_the_size(self, operator: EditOperator, tmp_path: Path) -> None:
        again = EditOperator.load(operator.save(tmp_path / "a", dtype=torch.float32))
        assert torch.equal(again.matrix, operator.matrix.float().double())
        assert again.digest == operator.digest
        with pytest.raises(EditError, match="float16"):
            operator.save(tmp_path / "a", dtype=torch.float16)

    def test_damage_is_found(self, operator: EditOperator, tmp_path: Path) -> None:
        path = operator.save(tmp_path / "a")
        data = path.read_bytes()
        for damaged, message in [
            (data[:-8], "cut short"),
            (data[:-1] + bytes([data[-1] ^ 1]), "checksum"),
            (data.replace(b"a female p0", b"a femalE p0"), "digest"),
            (data.replace(b"evenhand-operator/1", b"evenhand-operator/9"), "format"),
            (b"nonsense", "not a safetensors file"),
        ]:
            path.write_bytes(damaged)
            with pytest.raises(EditError, match=message):
                EditOperator.load(path)
        save_file({"other": torch.zeros(2)}, path)
        with pytest.raises(EditError, match="not an operator"):
            EditOperator.load(path)
        with pytest.raises(FileNotFoundError):
            EditOperator.load(tmp_path / "none")

    def test_pickles_without_its_device_copies(self, operator: EditOperator) -> None:
        operator.transform(torch.zeros(1, D))
        data = pickle.dumps(operator)
        again = pickle.loads(data)  # noqa: S301
        assert len(data) < 1.5 * operator.matrix.numel() * 8 + 8000
        assert torch.equal(again.matrix, operator.matrix)
        assert again.digest == operator.digest


@pytest.mark.parametrize(
    ("matrix", "message"),
    [(torch.zeros(2, 3), r"\[2, 3\]"), (torch.zeros(4), r"\[4\]"), (torch.full((2, 2), math.nan), "not finite")],
)
def test_bad_matrices_are_refused(matrix: torch.Tensor, message: str) -> None:
    with pytest.raises(EditError, match=message):
        EditOperator(matrix)
