"""What an engine's functions are replaced by for a while: put in once, put back when nobody wants it any more."""

from __future__ import annotations

import functools
import importlib
import sys
import threading
import warnings
from collections.abc import Callable, Mapping, Sequence
from types import ModuleType
from typing import Any


class Installation:
    """That csgmv's kernels are wanted in an engine; also a context manager, which gives that up at its end."""

    def __init__(self, give_up: Callable[[], None]) -> None:
        self._give_up: Callable[[], None] | None = give_up

    def restore(self) -> None:
        """Give it up; a second time does nothing. The engine has its own again when nobody wants csgmv's any more."""
        give_up, self._give_up = self._give_up, None
        if give_up is not None:
            give_up()

    def __enter__(self) -> Installation:
        return self

    def __exit__(self, *_: object) -> None:
        self.restore()


class Replacement:
    """One engine's replacement: in place as long as there are installations that were not restored, in any order."""

    def __init__(self, put_in: Callable[[], Callable[[], None]]) -> None:
        """`put_in` replaces and returns what puts back; where it raises, it has replaced nothing."""
        self._put_in = put_in
        self._put_back: Callable[[], None] | None = None
        self._wanted = 0
        self._lock = threading.RLock()

    def install(self) -> Installation:
        """One more installation."""
        with self._lock:
            if self._put_back is None:
                self._put_back = self._put_in()
            self._wanted += 1
        return Installation(self._give_up)

    def _give_up(self) -> None:
        with self._lock:
            self._wanted -= 1
            if self._wanted == 0 and self._put_back is not None:
                put_back, self._put_back = self._put_back, None
                put_back()


def engine(name: str, tested: Sequence[str]) -> ModuleType:
    """An engine's package; warns once where its version is none of those that the replacement was tested with.

    Raises:
        ModuleNotFoundError: the engine is not installed.
    """
    package = module(name)
    if package is None:
        raise ModuleNotFoundError(
            f"{name} is not installed in this environment: there is nothing to replace (tested with {name} "
            f"{' and '.join(tested)})",
            name=name,
        )
    _warn_untested(name, version(package), tuple(tested))
    return package


def version(package: ModuleType) -> str:
    """What a package calls its version."""
    return str(getattr(package, "__version__", "of unknown version"))


def module(name: str) -> ModuleType | None:
    """A module, imported; None where there is none. Whatever else goes wrong in importing it is raised."""
    try:
        return importlib.import_module(name)
    except ModuleNotFoundError as error:
        if error.name is None or not f"{name}.".startswith(f"{error.name}."):
            raise
        return None


@functools.cache
def _warn_untested(name: str, found: str, tested: tuple[str, ...]) -> None:
    if found.partition("+")[0] not in tested:
        warnings.warn(
            f"csgmv.integrations.{name} was tested with {name} {' and '.join(tested)}; {name} {found} is installed, "
            "whose functions may mean something else: compare its outputs with and without",
            stacklevel=6,  # the line that calls install
        )


def put_in_names(package: str, replacements: Mapping[Any, Any]) -> Callable[[], None]:
    """Replace functions wherever the modules of a package have them under a name: where they are defined, and where
    they were imported to.

    Modules that are imported later take them from where they are defined. What puts back looks for the replacements in
    the same way, so that those modules get the functions too; a name that has been given another value stays that.
    """

    def replace(new: Mapping[int, Any]) -> None:
        for name, loaded in list(sys.modules.items()):
            if isinstance(loaded, ModuleType) and f"{name}.".startswith(f"{package}."):
                for attribute, value in list(vars(loaded).items()):
                    if id(value) in new:
                        setattr(loaded, attribute, new[id(value)])

    replace({id(old): new for old, new in replacements.items()})
    return lambda: replace({id(new): old for old, new in replacements.items()})
