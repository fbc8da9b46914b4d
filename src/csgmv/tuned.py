"""The generated tables, read once, without what this version of csgmv cannot use.

A wheel's table is made by the very code that is beside it. It need not be so: a build with its hook off has none or an
old one, a tree may have that of yesterday. Launches then go on with what is left, and one warning says so. Standard
library only.
"""

from __future__ import annotations

import functools
import importlib
import warnings
from collections.abc import Callable, Mapping
from types import ModuleType
from typing import Any, NamedTuple

from csgmv import fallback, rules

NAMES = ("TABLE", "CHUNK_SIZES", "GPUS", "DEFAULTS", "LOSSES", "DIGEST")
_REMEDY = "`python -m codegen` makes it anew in a source tree, csgmv.load_overlay takes raw results"
Fits = Callable[[Any, Any], bool]  # whether a table may have this value under this name


class Tuned(NamedTuple):
    """What `_tuned_table.py` describes, by its names there."""

    table: Mapping[fallback.Head, Mapping[Any, Any]] = {}
    chunk_sizes: Mapping[fallback.Head, Mapping[rules.Cell, int]] = {}
    gpus: Mapping[str, tuple[str, int]] = {}
    defaults: Mapping[str, Mapping[str, Mapping[int, rules.Row]]] = {}
    losses: Mapping[str, Mapping[str, tuple[int, int, int]]] = {}
    digest: str | None = None


def tables() -> Tuned:
    """The tables; empty where there are none. Warns once of what is missing or left out."""
    try:
        module = importlib.import_module("csgmv._tuned_table")
    except ModuleNotFoundError:
        _warn("this installation has none")
        return Tuned()
    except Exception as error:  # noqa: BLE001  whatever a broken file raises when it is run
        _warn(f"it cannot be imported ({type(error).__name__}: {error})")
        return Tuned()
    return _usable(module)


@functools.lru_cache(maxsize=64)
def _warn(why: str) -> None:
    warnings.warn(f"csgmv's table of tuned configs: {why}; launches get defaults. {_REMEDY}.", stacklevel=2)


@functools.lru_cache(maxsize=4)
def _usable(module: ModuleType) -> Tuned:
    """The entries that can be used, and a warning if there are others.

    Looking at ten thousand rows takes longer than importing them: of today's format they are taken as they are.
    """
    given: list[Any] = [getattr(module, name, None) for name in NAMES]
    if getattr(module, "FORMAT", None) == rules.table_format() and None not in given:
        if not any(given[0].values()):
            _warn("it is empty")
        return Tuned(*given)
    cut = _Cut()
    found = Tuned(
        table=cut.nested(given[0], _is_head, lambda _, layers: cut.rows(layers)),
        chunk_sizes=cut.nested(given[1], _is_head, lambda _, cells: cut.kept(cells, _is_chunk_size)),
        gpus=cut.kept(given[2], _is_gpu),
        defaults=cut.nested(given[3], _is_text, lambda _, by_op: cut.defaults(by_op)),
        losses=cut.nested(given[4], _is_text, lambda _, by_step: cut.kept(by_step, _is_loss)),
        digest=given[5] if isinstance(given[5], str) else None,
    )
    missing = [name for name, value in zip(NAMES, given) if value is None]
    if missing or cut.left_out:
        what = [f"it has no {', '.join(missing)}"] * bool(missing)
        what += [f"{cut.left_out} entries are of another format and left out"] * bool(cut.left_out)
        _warn(f"{' and '.join(what)} (it was made by another version of csgmv)")
    elif not any(found.table.values()):
        _warn("it is empty")
    return found


class _Cut:
    """Copies tables without what does not fit, and counts that."""

    def __init__(self) -> None:
        self.left_out = 0

    def kept(self, given: Any, fits: Fits) -> dict[Any, Any]:
        """The entries that fit."""
        if given is not None and not isinstance(given, Mapping):
            self.left_out += 1
        items = given.items() if isinstance(given, Mapping) else ()
        found = {name: value for name, value in items if _fits(fits, name, value)}
        self.left_out += len(items) - len(found)
        return found

    def nested(self, given: Any, named: Callable[[Any], bool], inner: Callable[[Any, Any], Any]) -> dict[Any, Any]:
        """The same of tables of tables."""
        return {name: inner(name, value) for name, value in self.kept(given, lambda name, _: named(name)).items()}

    def rows(self, layers: Any) -> dict[Any, Any]:
        """One GPU's rows by layer and batch."""
        return self.nested(
            layers, _is_layer, lambda layer, batches: self.kept(batches, functools.partial(_is_row, layer))
        )

    def defaults(self, by_op: Any) -> dict[str, Any]:
        """One architecture's defaults."""
        return self.nested(
            by_op,
            lambda op: op in rules.OPS,
            lambda op, by_rows: self.kept(by_rows, functools.partial(_is_default, op)),
        )


def _fits(fits: Fits, name: Any, value: Any) -> bool:
    try:
        return fits(name, value)
    except (AttributeError, TypeError, ValueError):
        return False


def _is_text(name: Any) -> bool:
    return isinstance(name, str)


def _is_head(head: Any) -> bool:
    return type(head) is tuple and len(head) == 2 and all(map(_is_text, head))


def _is_layer(layer: Any) -> bool:
    return type(layer) is tuple and len(layer) == rules.LAYER_FIELDS


def _is_row(layer: tuple[Any, ...], batch: Any, row: Any) -> bool:
    return (
        type(batch) is tuple
        and len(layer + batch) == len(rules.Key._fields)
        and rules.key_fault(rules.Key._make(layer + batch)) is None
        and _is_config(layer[0], row)
    )


@functools.lru_cache(maxsize=16384)  # few rows are one key's alone
def _is_config(op: str, row: Any) -> bool:
    return row is None or (type(row) is tuple and rules.config_fault(op, row) is None)


def _is_default(op: str, rows: Any, row: Any) -> bool:
    return type(rows) is int and rows > 0 and row is not None and _is_config(op, row)


def _is_chunk_size(cell: Any, chunk_size: Any) -> bool:
    batch_rows, adapters = cell
    return all(type(number) is int and number > 0 for number in (batch_rows, adapters, chunk_size))


def _is_gpu(name: Any, facts: Any) -> bool:
    architecture, sm_count = facts
    return isinstance(name, str) and isinstance(architecture, str) and type(sm_count) is int


def _is_loss(step: Any, loss: Any) -> bool:
    return isinstance(step, str) and len(loss) == 3 and all(type(number) is int for number in loss)
