"""Three adapters generate in one batch of a transformers model, beside a row without one.

Model and adapters are tiny, random and made on the spot: nothing is downloaded. For real ones, put the model that
`from_pretrained` gives and the folders that PEFT saved in their place.
"""

from __future__ import annotations

import tempfile
from pathlib import Path

import torch

from csgmv.e2e import random_adapters
from csgmv.integrations.transformers import MultiLoRA

TARGETS = ["q_proj", "v_proj"]
PROMPTS = [[11, 12, 13], [21, 22], [31, 32, 33], [11, 12, 13]]  # token ids
NEW_TOKENS = 3


def main() -> None:
    """Print what each row generates, and what the bare model would have."""
    try:
        from transformers import AutoModelForCausalLM, Qwen3Config
    except ImportError:
        raise SystemExit("this example needs the extra `transformers`: pip install 'csgmv[transformers]'") from None
    torch.manual_seed(0)
    config = Qwen3Config(
        hidden_size=64,
        intermediate_size=96,
        num_hidden_layers=1,
        num_attention_heads=4,
        num_key_value_heads=2,
        head_dim=16,
        vocab_size=96,
        pad_token_id=0,
        eos_token_id=None,
    )
    device = "cuda" if torch.cuda.is_available() else "cpu"
    model = AutoModelForCausalLM.from_config(config).eval().to(device)

    longest = max(map(len, PROMPTS))
    ids = torch.tensor([[0] * (longest - len(prompt)) + prompt for prompt in PROMPTS], device=device)  # padded left
    tokens = {"input_ids": ids, "attention_mask": (ids != 0).long()}

    def generated() -> list[list[int]]:
        made: torch.Tensor = model.generate(**tokens, max_new_tokens=NEW_TOKENS, do_sample=False)
        rows: list[list[int]] = made[:, longest:].tolist()
        return rows

    with tempfile.TemporaryDirectory() as folder:
        made = random_adapters.make(model, 3, (4, 8, 16), torch.float32, Path(folder), TARGETS)
        folders = dict(zip(("chat", "sql", "french"), (adapter.folder for adapter in made)))
        many = MultiLoRA(model, folders)  # reads them; the folders are not needed any more

    names = ["chat", "sql", "french", None]
    with many:
        print(many)
        with many.use(names):
            served = generated()
    for name, prompt, row, bare in zip(names, PROMPTS, served, generated()):
        print(f"{name or 'no adapter':<10}  {prompt} → {row}, bare: {bare}")


if __name__ == "__main__":
    main()
