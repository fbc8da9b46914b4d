"""Every row of a model's batch gets its own adapter: what PEFT computes for it alone, for as long as that is wanted."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import tokenizers
import torch
import transformers

from csgmv import chunk_sizes
from csgmv.integrations import wrapped_linear
from csgmv.integrations.transformers import MultiLoRA
from peft_models import CONFIGS, DEVICE, by_peft, save_adapter, tiny

README = (Path(__file__).parents[2] / "README.md").read_text(encoding="utf-8")
NAMES = ["all", None, "some", "one"]
SMALL = dict(r=4, target_modules=["q_proj", "v_proj", "down_proj"])


def adapters(model: Any, folder: Path) -> dict[str, Path]:
    """Different in rank, scaling and targets, from layer to layer and within q, k and v."""
    merged = any(path.endswith("qkv_proj") for path, _ in model.named_modules())
    q, up, down = ("qkv_proj", "gate_up_proj", "down_proj") if merged else ("q_proj", "up_proj", "down_proj")
    v = q if merged else "v_proj"
    return {
        "all": save_adapter(
            model,
            folder / "all",
            r=4,
            lora_alpha=6,
            target_modules="all-linear",
            rank_pattern={q: 9, r"1\..*down_.*": 2},
        ),
        "some": save_adapter(
            model,
            folder / "some",
            r=5,
            use_rslora=True,
            target_modules=[q, up],
            alpha_pattern={q: 3, f"1.mlp.{up}": 40},
        ),
        "one": save_adapter(model, folder / "one", r=16, target_modules=[v, down], layers_to_transform=[1]),
    }


def tokens(rows: int, length: int) -> torch.Tensor:
    return torch.randint(3, 96, (rows, length), generator=torch.Generator().manual_seed(rows)).to(DEVICE)


@torch.no_grad()
def logits(model: Any, ids: torch.Tensor, **how: Any) -> torch.Tensor:
    return model(ids, **how).logits


@pytest.mark.parametrize("kind", CONFIGS)
def test_each_row_is_peft_alone(kind: str, tmp_path: Path) -> None:
    """Logits in float32, on each architecture; without adapters the bits are the bare model's, before and after."""
    model, ids = tiny(kind, layers=2), tokens(4, 5)
    folders = adapters(model, tmp_path)
    bare = logits(model, ids)
    wanted = by_peft(model, folders, NAMES, lambda adapted, row: adapted(ids[row : row + 1]).logits[0])
    with MultiLoRA(model, folders) as many:
        with many.use(NAMES):
            got = logits(model, ids)
        with many.use([None] * 4):
            assert torch.equal(logits(model, ids), bare)
        assert torch.equal(logits(model, ids), bare)
    for row, want in enumerate(wanted):
        torch.testing.assert_close(got[row], want, rtol=2e-5, atol=2e-5)
        assert ((want - bare[row]).abs().max() > 0.05) == (NAMES[row] is not None)
    assert torch.equal(logits(model, ids), bare)


def test_the_readmes_example_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Any) -> None:
    """As printed, but for the model, which is a tiny one in float32 wherever there is a device, and fewer tokens."""
    model = tiny()
    for name in ("chat", "sql", "french"):
        save_adapter(model, tmp_path / "adapters" / name, r=4, target_modules=["q_proj"])
    model.save_pretrained(tmp_path / "base")
    words = {"[PAD]": 0, "[UNK]": 1} | {word: 2 + index for index, word in enumerate(("Hello", "All", "users"))}
    tokenizer = tokenizers.Tokenizer(tokenizers.models.WordLevel(words, unk_token="[UNK]"))
    tokenizer.pre_tokenizer = tokenizers.pre_tokenizers.Whitespace()
    tokenizer = transformers.PreTrainedTokenizerFast(tokenizer_object=tokenizer, pad_token="[PAD]", unk_token="[UNK]")
    tokenizer.save_pretrained(tmp_path / "base")
    (code,) = (block for block in README.split("```python\n")[1:] if "MultiLoRA" in block)
    for printed, here in (
        ("Qwen/Qwen3-0.6B", "base"), ("bfloat16", "float32"), ('"cuda"', repr(DEVICE)), ("=32", "=2")
    ):  # fmt: skip
        assert printed in code
        code = code.replace(printed, here)
    monkeypatch.chdir(tmp_path)
    exec(code.split("```")[0], {})
    assert capsys.readouterr().out.count("[UNK]") >= 3


@pytest.mark.parametrize("beams", [1, 2])
def test_generates_what_peft_does(beams: int, tmp_path: Path) -> None:
    """Token for token, with left padding and a key-value cache, greedily and by beam search."""
    model, ids = tiny(), tokens(3, 4)
    folders = {"a": save_adapter(model, tmp_path / "a", r=8, lora_alpha=16, target_modules=["q_proj", "v_proj"])}
    folders["b"] = save_adapter(model, tmp_path / "b", lora_alpha=24, **SMALL)
    ids[0, :2], ids[1, :1] = 0, 0
    names = ["b", None, "a"]
    how = dict(max_new_tokens=3, do_sample=False, num_beams=beams)

    def generate(model: Any, rows: slice) -> torch.Tensor:
        given = {"input_ids": ids[rows], "attention_mask": (ids[rows] != 0).long()}
        return model.generate(**given, **how)[:, 4:]

    wanted = torch.cat(by_peft(model, folders, names, lambda adapted, row: generate(adapted, slice(row, row + 1))))
    assert not torch.equal(wanted, generate(model, slice(None)))
    with MultiLoRA(model, folders) as many, many.use(names):
        assert torch.equal(generate(model, slice(None)), wanted)


def test_adapters_come_and_go_while_serving(tmp_path: Path) -> None:
    """A slot is given to the next; what was read of it before does not linger, be its rank smaller or larger."""
    model, ids = tiny(), tokens(2, 3)
    folders = {
        name: save_adapter(model, tmp_path / name, r=rank, target_modules=targets)
        for name, rank, targets in (
            ("first", 9, ["q_proj"]),
            ("second", 3, ["q_proj", "k_proj"]),
            ("third", 12, ["down_proj"]),
        )
    }

    def want(names: list[str | None]) -> torch.Tensor:
        return torch.stack(by_peft(model, folders, names, lambda adapted, row: adapted(ids[row : row + 1]).logits[0]))

    batches = [["first", None], ["first", "second"], ["second", "third"]]
    wanted = [want(names) for names in batches]
    with MultiLoRA(model, {"first": folders["first"]}, max_loras=2) as many:
        for names, expected in zip(batches, wanted):
            for name in {*many.adapters} - {*names}:
                many.remove(name)
            for name in {*names} - {*many.adapters, None}:
                many.add(name, folders[name])
            with many.use(names):
                torch.testing.assert_close(logits(model, ids), expected, rtol=2e-5, atol=2e-5)
        with pytest.raises(ValueError, match="expected at most max_loras = 2 adapters at a time"):
            many.add("first", folders["first"])
        assert set(many.adapters) == {"second", "third"}


def test_an_adapter_is_added_within_a_batch(tmp_path: Path) -> None:
    """It may wrap more layers; the batch that is being served goes on as it was. One that is used stays."""
    model, ids = tiny(), tokens(1, 2)
    one = save_adapter(model, tmp_path / "one", **SMALL)
    other = save_adapter(model, tmp_path / "other", r=2, target_modules=["o_proj", "k_proj"])
    with MultiLoRA(model, {"one": one}, max_loras=2) as many, many.use(["one"]):
        before = logits(model, ids)
        many.add("other", other)
        assert torch.equal(logits(model, ids), before)
        with pytest.raises(ValueError, match="expected an adapter that no batch uses, got 'one'"):
            many.remove("one")
        many.remove("other")


def test_close_gives_back_what_was_there(tmp_path: Path) -> None:
    """Also an instance's own `forward`; not while it is covered by somebody else's, nor within a batch."""
    model = tiny()
    folder = save_adapter(model, tmp_path / "a", **SMALL)
    layer = model.model.layers[0]
    hooked = layer.self_attn.v_proj
    own = hooked.forward = lambda x: torch.nn.functional.linear(x, hooked.weight)
    before = {path: dict(vars(module)) for path, module in model.named_modules()}
    weights = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    many = MultiLoRA(model, {"a": folder})
    assert "forward" in vars(layer.self_attn.q_proj)
    with many.use([None]), pytest.raises(RuntimeError, match="a batch is being served"):
        many.close()
    wrapped, hooked.forward = hooked.forward, own
    with pytest.raises(RuntimeError, match=r"model\.layers\.0\.self_attn\.v_proj: its `forward` has been replaced"):
        many.close()
    hooked.forward = wrapped
    many.close()
    many.close()
    assert {path: dict(vars(module)) for path, module in model.named_modules()} == before
    assert hooked.forward is own
    assert all(torch.equal(tensor, weights[name]) for name, tensor in model.state_dict().items())
    for call in (lambda: many.use(["a"]).__enter__(), lambda: many.add("b", folder), lambda: many.remove("a")):
        with pytest.raises(RuntimeError, match="this MultiLoRA is closed"):
            call()


def test_a_batch_without_adapters_launches_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Nor does one whose adapters do not target a layer."""
    model, ids = tiny(layers=2), tokens(2, 3)
    folders = {"a": save_adapter(model, tmp_path / "a", r=2, target_modules=["o_proj"], layers_to_transform=[1])}
    folders["b"] = save_adapter(model, tmp_path / "b", r=2, target_modules=["o_proj", "q_proj", "v_proj"])
    calls, real = [], wrapped_linear.add_lora
    monkeypatch.setattr(
        wrapped_linear, "add_lora", lambda base, *args, **how: (calls.append(len(base)), real(base, *args, **how))[1]
    )
    with MultiLoRA(model, folders) as many:
        for names, expected in (
            ([None, None], []),
            (["a", None], [1]),
            (["a", "b"], [2, 1] * 2),
        ):
            calls.clear()
            with many.use(names):
                logits(model, ids)
            assert calls == expected


def test_a_static_batch_is_refilled_in_place(tmp_path: Path) -> None:
    """With the same tensors, which a graph holds: other names, another adapter in the slot, beams, none at all."""
    model, ids = tiny(), tokens(4, 2)
    a = save_adapter(model, tmp_path / "a", r=4, target_modules=["q_proj", "v_proj"])
    b = save_adapter(model, tmp_path / "b", r=7, lora_alpha=3, target_modules=["v_proj", "down_proj"])
    with MultiLoRA(model, {"a": a}, max_loras=2, target_modules=["down_proj"]) as many:
        static = many.static(4, 2)
        pointers = set()

        def same_as_a_fresh_batch(names: list[str | None]) -> None:
            static.update(names)
            with many.use(static):
                got = logits(model, ids)
                pointers.add(tuple(t.data_ptr() for s in static._segments.values() for t in s.tensors))
            with many.use(names):
                assert torch.equal(got, logits(model, ids))

        same_as_a_fresh_batch(["a", None, None, "a"])
        many.add("b", b)
        same_as_a_fresh_batch(["b", "a"])
        with pytest.raises(ValueError, match="update static batches first"):
            many.remove("b")
        same_as_a_fresh_batch([None] * 4)
        many.remove("a")
        same_as_a_fresh_batch(["b", "b", None, "b"])
        assert len(pointers) == 1
        with many.use(static), pytest.raises(ValueError, match=r"inputs of \[4, 2\] rows and tokens, got \[4, 1\]"):
            logits(model, ids[:, :1])
        other = save_adapter(tiny(), tmp_path / "c", r=2, target_modules=["o_proj"])
        with pytest.raises(ValueError, match=r"'c': expected targets among the wrapped .* got .*o_proj: name it in"):
            many.add("c", other)


def test_a_batch_has_the_chunk_size_that_is_asked_for(tmp_path: Path) -> None:
    """Of its own or in fixed buffers; without, that of the table."""
    model, shape = tiny(), torch.Size([2, 20, 64])
    usual = chunk_sizes.choose(40, 1, torch.device(DEVICE))
    with MultiLoRA(model, {"a": save_adapter(model, tmp_path / "a", r=4, target_modules=["o_proj"])}) as many:
        for chunk_size, expected in ((None, usual), (32, 32)):
            with many.use(["a", "a"], chunk_size=chunk_size):
                segments = many._serving.batch.segments(shape, 0)
            assert (segments.chunk_size, segments.num_segments) == (expected, -(-40 // expected))
        static = many.static(2, 20, chunk_size=64)
        assert static.segments(shape, 0).chunk_size == 64
        for wrong, error in ((0, ValueError), (1.5, TypeError)):
            with pytest.raises(error, match="chunk_size: expected"), many.use(["a"], chunk_size=wrong):
                pass
            with pytest.raises(error, match="chunk_size: expected"):
                many.static(2, chunk_size=wrong)
        with pytest.raises(ValueError, match="a static batch has its own, got 16"), many.use(static, chunk_size=16):
            pass
        with many.use([None]):
            pass


def test_wrong_batches_are_refused(tmp_path: Path) -> None:
    """By what was expected and what came; the next batch is none the worse for it."""
    model, ids = tiny(), tokens(3, 2)
    many = MultiLoRA(model, {"a": save_adapter(model, tmp_path / "a", **SMALL)})
    for names, error, message in (
        ("a", TypeError, "expected a sequence with an adapter's name or None for each row, got 'a'"),
        ([], ValueError, "got no rows"),
        (["b"], ValueError, r"expected names of adapters \(a\), got 'b'"),
    ):
        with pytest.raises(error, match=message), many.use(names):
            pass
    with many.use(["a", None]):
        with pytest.raises(ValueError, match=r"as many rows as names of adapters \(2\), or a multiple, got 3"):
            logits(model, ids)
        with pytest.raises(ValueError, match=r"inputs of \[rows, tokens, features\], got 2 dimensions"):
            model.model.layers[0].self_attn.q_proj(torch.zeros(2, 64, device=DEVICE))
        with pytest.raises(RuntimeError, match="a batch is being served already"), many.use([None]):
            pass
    model.requires_grad_()
    with many.use(["a"]), pytest.raises(RuntimeError, match=r"q_proj: adapters are for inference, .* torch\.no_grad"):
        model(ids)
    with many.use(["a"] * 3), torch.inference_mode():
        assert logits(model, ids).isfinite().all()
    for rows, count in ((0, 1), (1, 0)):
        with pytest.raises(ValueError, match="expected 1 or more, got 0"):
            many.static(rows, count)


def test_what_does_not_fit_is_refused_before_anything_changes(tmp_path: Path) -> None:
    """On construction and while serving: the model, the slots and the adapters there are stay as they were."""
    model, ids = tiny(), tokens(1, 2)
    good = save_adapter(model, tmp_path / "good", **SMALL)
    large = save_adapter(model, tmp_path / "large", r=17, target_modules=["q_proj"])
    dora = save_adapter(model, tmp_path / "dora", r=2, use_dora=True, target_modules=["q_proj"])
    for folders, how, message in (
        ({"good": good, "dora": dora}, {}, "got use_dora = True"),
        (
            {"good": good, "large": large},
            {"max_rank": 16},
            "'large': expected ranks of at most max_rank 16, got 17 of .*q_proj",
        ),
        (
            {"good": good, "large": large},
            {"max_loras": 1},
            "max_loras: expected at least 2, for the adapters given, got 1",
        ),
        ({"good": good}, {"max_rank": 300}, "max_rank: expected 1 to 256, got 300"),
        ({}, {}, "expected at least one, or target_modules that the model has"),
        ({}, {"target_modules": "("}, r"target_modules: expected names or a regular expression, got '\('"),
        ({}, {"target_modules": ["nowhere"]}, "expected at least one, or target_modules that the model has"),
    ):
        with pytest.raises(ValueError, match=message):
            MultiLoRA(model, folders, **how)
        assert not any("forward" in vars(module) for module in model.modules())
    for name in ("", None, 3):
        with pytest.raises(TypeError, match=f"adapters: expected names, got {name!r}"):
            MultiLoRA(model, {name: good})
    with MultiLoRA(model, {"good": good}) as many:
        other = many.static(1)
    with MultiLoRA(model, {"good": good}, max_loras=3) as many:
        with pytest.raises(ValueError, match="expected one of this MultiLoRA's own `static`"), many.use(other):
            pass
        with pytest.raises(ValueError, match="no other MultiLoRA has wrapped"):
            MultiLoRA(model, {"good": good})
        with many.use(["good"]):
            before = logits(model, ids)
            for name, folder, message in (
                ("dora", dora, "got use_dora = True"),
                ("large", large, "expected ranks of at most max_rank 16, got 17"),
                ("good", good, "name: expected a new one, got 'good'"),
            ):
                with pytest.raises(ValueError, match=message):
                    many.add(name, folder)
            assert torch.equal(logits(model, ids), before)
        assert many.adapters == ("good",)
        with pytest.raises(ValueError, match="name: expected one of good, got 'other'"):
            many.remove("other")
        assert repr(many) == f"MultiLoRA(1 of 3 adapters, ranks up to 16, 3 layers, {next(model.parameters()).device})"


def test_a_quantised_layer_is_wrapped(tmp_path: Path) -> None:
    """Anything that says in_features and out_features, whatever its weight is; adapters are in the model's dtype."""

    class Quantised(torch.nn.Module):
        def __init__(self, linear: torch.nn.Linear) -> None:
            super().__init__()
            self.in_features, self.out_features = linear.in_features, linear.out_features
            self.scale = linear.weight.detach().abs().max() / 127
            self.register_buffer("weight", (linear.weight.detach() / self.scale).round().to(torch.int8).flatten())

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return x @ (self.weight.to(x.dtype) * self.scale).view(self.out_features, -1).T

    model, ids = tiny(), tokens(1, 3)
    folder = save_adapter(model, tmp_path / "a", r=4, target_modules=["o_proj"])
    adapted = by_peft(model, {"a": folder}, ["a"], lambda model, _: model(ids).logits)[0]
    change = adapted - logits(model, ids)
    attention = model.model.layers[0].self_attn
    attention.o_proj = Quantised(attention.o_proj)
    with MultiLoRA(model, {"a": folder}) as many, many.use(["a"]):
        with_adapter = logits(model, ids)
    got = with_adapter - logits(model, ids)
    assert (got - change).norm() < 0.05 * change.norm()
