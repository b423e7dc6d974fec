"""Typed settings: what a recipe's sections are validated against, without importing torch."""

from __future__ import annotations

import inspect
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any, ClassVar, final

import pydantic

from .. import registry
from ..errors import DdnkitError, PluginError
from ..importing import describe_error, import_object

# A model has pydantic look for its own plugins in all that is installed, which may be unreadable.
registry.find()


@final
@dataclass(frozen=True)
class Doubt:
    """Something that a recipe says and that is likely not meant; it is told, and the run goes on.

    Attributes:
        key: what is said, a dotted key of the section that doubts it.
        text: what comes of it, and why.
        idle: the key does nothing here. Where a sweep has a variant that makes use of it, that is
            as it should be, and nothing is told.
    """

    key: str
    text: str
    idle: bool = False


class Settings(pydantic.BaseModel):
    """Base of every section of a recipe: typed fields whose descriptions are the help text.

    A plugin for a dataset, backbone, head, loss, optimizer or metric is a subclass with a ``build``
    method (see `Component`), in a module that does not import torch at its top. The recipe key
    ``name`` chooses the class and is not a field of it.
    """

    model_config = pydantic.ConfigDict(
        extra="forbid", frozen=True, validate_default=True, allow_inf_nan=False
    )

    def doubts(self) -> Iterable[Doubt]:
        """What is valid and likely not meant; told with file and line, for keys that are given."""
        return ()


class Component(Settings):
    """Settings that name what is built from them, without importing it.

    A head, for example, whose settings import no torch, and whose module knows its settings::

        class FixedHead(ddnkit_etf.settings.HeadSettings):  # a Component
            builder = "my_heads.fixed:FixedClassifier.from_settings"
            margin: float = 0.1

        class FixedClassifier(ddnkit_etf.ClassifierHead):  # in my_heads/fixed.py
            def __init__(self, feature_dim: int, classes: int, settings: FixedHead):
                super().__init__(feature_dim, classes, settings)

    A subclass may override `build` instead.
    """

    #: ``"package.module:name"`` of a class or function that takes these settings, and then what the
    #: section's builder is called with.
    builder: ClassVar[str]

    def build(self, *given: Any, **named: Any) -> Any:
        """What `builder` makes of these settings and of what is given.

        Raises:
            ddnkit.PluginError: there is no such builder, it fails to import, or it takes other arguments.
        """
        builder = _load_builder(type(self))
        try:
            inspect.signature(builder).bind(self, *given, **named)
        except ValueError:  # it has no signature that Python could tell
            pass
        except TypeError as error:
            taken = ", ".join(
                ["settings", *["..." for _ in given], *[f"{name}=..." for name in named]]
            )
            raise PluginError(
                f"{_named(type(self))} cannot be called with ({taken}): {error}"
            ) from error
        return builder(self, *given, **named)


def _named(kind: type[Component]) -> str:
    return f"the builder '{kind.builder}' of {kind.__module__}.{kind.__qualname__}"


def _load_builder(kind: type[Component]) -> Any:
    """The function or class that a component names."""
    try:
        builder = import_object(kind.builder)
    except PluginError as error:
        raise PluginError(f"{_named(kind)} is not there: {error}") from error
    except DdnkitError:  # it says what is missing, and what to do
        raise
    except (Exception, SystemExit) as error:
        raise PluginError(f"{_named(kind)} failed to import: {describe_error(error)}") from error
    if not callable(builder):
        raise PluginError(f"{_named(kind)} is {builder!r:.100}; expected a class or a function")
    return builder


def component(
    group: str, default: str | None = None, description: str = "", *, optional: bool = False
) -> Any:
    """A field of a pipeline filled by a plugin of ``group``, chosen by the section's ``name``.

    With ``default`` the section may be left out, or hold settings without a ``name``. Where it is
    ``optional`` it may be left out too, and is None then.
    """
    return pydantic.Field(
        default=None if default or optional else ...,
        validate_default=False,
        description=description,
        json_schema_extra={"ddnkit_group": group, "ddnkit_default": default},
    )
