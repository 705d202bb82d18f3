"""`NKIObject`: the base of dataclasses and configuration objects in kernels."""

import inspect
import typing
from typing import Any


class NKIObject:
    """Base class for NKI kernel dataclasses and configuration objects.

    As in NKI, annotated fields without a default have the default None, so a constructor call may
    omit them.
    """

    def __init__(self, **kwargs: Any) -> None:
        for name, value in kwargs.items():
            setattr(self, name, value)

    def __init_subclass__(cls, **kwargs: Any) -> None:
        super().__init_subclass__(**kwargs)
        slots = cls.__dict__.get("__slots__", ())
        for name, annotation in inspect.get_annotations(cls).items():
            if name in slots or typing.get_origin(annotation) is typing.ClassVar:
                continue
            if isinstance(annotation, str) and "ClassVar" in annotation:
                continue
            if name not in cls.__dict__:
                setattr(cls, name, None)
        cls._annotate_plain_defaults()

    @classmethod
    def _annotate_plain_defaults(cls) -> None:
        """Annotates plain class attributes, so that they are dataclass fields, as in NKI."""
        annotations = dict(inspect.get_annotations(cls))
        for name, value in list(cls.__dict__.items()):
            plain = value is None or isinstance(value, (bool, int, float, str))
            if plain and not name.startswith("__") and name not in annotations:
                annotations[name] = Any
        cls.__annotations__ = annotations
