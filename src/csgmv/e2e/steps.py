"""What is run of a batch: the forward pass of whole prompts, or one step of decoding behind them."""

from __future__ import annotations

from typing import Any

import torch

from csgmv.e2e.stopwatch import ROUNDS, WARM_UP, Call, Stopwatch
from csgmv.e2e.ways import Names, Way
from csgmv.integrations.row_batches import StaticBatch

PROMPT = 32  # tokens before a step of decoding: few, so that attention over the cache does not hide what is measured
METHOD = (
    "N × 1: a step of decoding as a CUDA graph, with a static key-value cache that holds "
    f"{PROMPT} tokens a row; other batches: the eager forward pass of N prompts, in which csgmv groups the batch anew"
)


class Prefill:
    """The forward pass of a batch, eager."""

    def __init__(self, ids: torch.Tensor) -> None:
        self.ids = ids

    def of(self, way: Way, names: Names, stopwatch: Stopwatch) -> Call:  # noqa: ARG002
        """A call that gives the last hidden states of all tokens."""
        arguments = way.arguments(names)

        def run() -> torch.Tensor:
            with way.use(names):
                states: torch.Tensor = way.model(input_ids=self.ids, use_cache=False, **arguments).last_hidden_state
                return states

        return run

    def states(self, states: torch.Tensor) -> torch.Tensor:
        """Of all tokens' states, those that a call gives."""
        return states


class Decode:
    """One step behind a prompt, captured; each replay is a step further on, for which the cache has room."""

    def __init__(self, ids: torch.Tensor) -> None:
        """`ids` [rows, PROMPT + 1]: prompts, and the token of the step."""
        self.ids = ids

    def of(self, way: Way, names: Names, stopwatch: Stopwatch) -> Call:
        """A call that gives the last hidden states of one more token; those of the first that is made are checked."""
        from transformers import StaticCache

        room = self.ids.shape[1] + WARM_UP + ROUNDS
        cache = StaticCache(config=way.model.config, max_cache_len=room)
        prompt, token = self.ids[:, :-1], self.ids[:, -1:].clone()
        arguments = way.arguments(names)

        def run(ids: torch.Tensor, batch: Names | StaticBatch) -> torch.Tensor:
            states: torch.Tensor
            with way.use(batch):
                states = way.model(input_ids=ids, past_key_values=cache, use_cache=True, **arguments).last_hidden_state
            return states

        run(prompt, names)
        fixed = way.fixed(names)
        step = stopwatch.captured(lambda: run(token, fixed))
        cache.reset()
        run(prompt, names)
        return step

    def states(self, states: torch.Tensor) -> torch.Tensor:
        """Of all tokens' states, those that the first call gives."""
        return states[:, -1:]


def step(rows: int, tokens: int, vocabulary: int, device: torch.device) -> Any:
    """What a batch of random tokens is run as: decoding if there is one token a row."""
    length = PROMPT + 1 if tokens == 1 else tokens
    drawn = torch.randint(vocabulary, (rows, length), generator=torch.Generator().manual_seed(rows)).to(device)
    return Decode(drawn) if tokens == 1 else Prefill(drawn)
