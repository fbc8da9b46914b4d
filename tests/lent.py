"""Keys of one layer with a row each, which tests of the fallback lend to others."""

from __future__ import annotations

from csgmv.rules import Key, Row

SHRINK = Key("shrink", 1024, (), 64, 3, "bfloat16", 64, 32)
EXPAND = Key("expand", 0, (2048, 1024, 1024), 64, 3, "bfloat16", 64, 32)
ADD_LORA = Key("add_lora", 1024, (2048, 1024, 1024), 64, 3, "bfloat16", 64, 32)
SHRINK_ROW: Row = (64, 64, 64, 2, 2, 4, 3, None, False)
EXPAND_ROW: Row = (64, 64, 64, 8, 4, 4, None, True)
ROWS: dict[str, Row] = {
    "shrink": SHRINK_ROW,
    "expand": EXPAND_ROW,
    "add_lora": (*SHRINK_ROW, *EXPAND_ROW, True),
}
