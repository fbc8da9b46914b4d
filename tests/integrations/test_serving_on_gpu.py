"""What only a GPU shows of `MultiLoRA`: bf16 at a real model's size, CUDA graphs, Inductor's own graphs."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
import transformers

from csgmv.integrations.transformers import MultiLoRA
from peft_models import by_peft, save_adapter, tiny
from serving_toys import Attention, expected, three

pytestmark = pytest.mark.gpu


def embedding_model() -> Any:
    """Qwen3-Embedding-0.6B's shape, random, in bf16; a small vocabulary, which no layer of the decoder sees."""
    torch.manual_seed(0)
    config = transformers.Qwen3Config(
        hidden_size=1024,
        intermediate_size=3072,
        num_hidden_layers=28,
        num_attention_heads=16,
        num_key_value_heads=8,
        head_dim=128,
        vocab_size=1000,
    )
    with torch.device("cuda"):
        return transformers.Qwen3Model(config).eval().bfloat16()


@torch.no_grad()
def test_bfloat16_within_pefts_own_rounding(tmp_path: Path) -> None:
    """At Qwen3-Embedding-0.6B's size: as near to float32 as PEFT is, which runs each row by itself in bf16.

    Adapters are saved as bf16 can hold them, so that both start from the same weights.
    """
    model, names = embedding_model(), ["wide", None, "narrow", "wide"]
    folders = {
        "wide": save_adapter(model, tmp_path / "wide", dtype=torch.bfloat16, r=64, target_modules="all-linear"),
        "narrow": save_adapter(
            model, tmp_path / "narrow", dtype=torch.bfloat16, r=16, target_modules=["q_proj", "v_proj"]
        ),
    }
    ids = torch.randint(0, 1000, (4, 128), device="cuda")

    def states(model: Any, row: int) -> torch.Tensor:
        return model(ids[row : row + 1]).last_hidden_state[0].float()

    peft = torch.stack(by_peft(model, folders, names, states))
    with MultiLoRA(model, folders) as many:
        with many.use(names):
            ours = model(ids).last_hidden_state.float()
        bare = model(ids).last_hidden_state.float()
    exact = torch.stack(by_peft(model.float(), folders, names, states))
    for row, name in enumerate(names):
        off, theirs = (ours[row] - exact[row]).norm(), (peft[row] - exact[row]).norm()
        assert off <= 1.25 * theirs, f"{name}: {off} off, PEFT {theirs}"
        assert name is None or (bare[row] - exact[row]).norm() > 3 * theirs


@torch.no_grad()
def test_a_decode_step_is_captured_once(tmp_path: Path) -> None:
    """With transformers' static cache, in float32: replays after updates give what eager steps give."""
    model = tiny(layers=2, attention="sdpa")  # eager attention makes its mask from a scalar on the host
    folders = {
        "a": save_adapter(model, tmp_path / "a", r=8, target_modules="all-linear"),
        "b": save_adapter(model, tmp_path / "b", r=3, lora_alpha=9, target_modules=["q_proj", "k_proj", "down_proj"]),
    }
    later = save_adapter(model, tmp_path / "later", r=12, target_modules=["v_proj", "o_proj"])
    steps = torch.randint(3, 96, (3, 4, 1), device="cuda")
    cache = transformers.StaticCache(config=model.config, max_cache_len=8)
    ids = steps[0].clone()

    def step() -> torch.Tensor:
        return model(ids, past_key_values=cache, use_cache=True).logits

    with MultiLoRA(model, folders, max_loras=3) as many:
        static = many.static(4)
        with many.use(static):
            stream = torch.cuda.Stream()
            stream.wait_stream(torch.cuda.current_stream())
            with torch.cuda.stream(stream):
                step()
            torch.cuda.current_stream().wait_stream(stream)
            graph = torch.cuda.CUDAGraph()
            with torch.cuda.graph(graph):
                logits = step()
        for names in (["a", "b", None, "a"], [None] * 4, ["b"] * 4, ["later", "b", "a", None]):
            if "later" in names:
                many.add("later", later)
            static.update(names)
            cache.reset()
            got = []
            for token in steps:
                ids.copy_(token)
                graph.replay()
                got.append(logits.clone())
            cache.reset()
            for token, replayed in zip(steps, got):
                ids.copy_(token)
                with many.use(names):
                    torch.testing.assert_close(replayed, step(), rtol=2e-5, atol=2e-5)


@torch.no_grad()
def test_a_batch_that_ends_is_not_captured(tmp_path: Path) -> None:
    """A replay would read buffers that are gone."""
    model, x = Attention(), torch.randn(1, 2, 32, device="cuda")
    with MultiLoRA(model, three(tmp_path)) as many, many.use(["all"]):
        model(x)
        with (
            pytest.raises(RuntimeError, match="a CUDA graph needs a batch in fixed buffers"),
            torch.cuda.graph(torch.cuda.CUDAGraph()),
        ):
            model(x)


@torch.no_grad()
@pytest.mark.parametrize("mode", ["default", "reduce-overhead"])
def test_inductor_with_and_without_its_graphs(tmp_path: Path, mode: str) -> None:
    """The second makes CUDA graphs of its own: each static batch has one, which refills do not change."""
    folders, model = three(tmp_path), Attention()
    x = torch.randn(2, 3, 32, device="cuda")
    torch._dynamo.reset()
    with MultiLoRA(model, folders) as many:
        compiled = torch.compile(model, mode=mode, fullgraph=True)
        batches = many.static(2, 3), many.static(2, 3)
        for names in (["all", "o"], [None, "qv"], ["qv", "all"], ["o", "o"], ["all", None]):
            for batch, used in zip(batches, (names, names[::-1])):
                batch.update(used)
                with many.use(batch):
                    got = compiled(x).clone()
                torch.testing.assert_close(got, expected(folders, used, x), rtol=1e-4, atol=1e-5)
