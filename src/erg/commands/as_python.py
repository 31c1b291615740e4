"""A run as the Python that does the same."""

import math
from dataclasses import MISSING, fields, is_dataclass
from typing import Any


def python_of(run: Any, minutes: float | None) -> str:
    """A line that says it."""
    limit = f", minutes={minutes:g}" if minutes else ""
    return f"In Python: erg.fit({_as_python(run)}{limit})"


def _as_python(value: Any) -> str:
    """A value as Python to be pasted behind `import erg`; of data types what is not the default."""
    if is_dataclass(value) and not isinstance(value, type):
        told = [
            f"{field.name}={_as_python(getattr(value, field.name))}"
            for field in fields(value)
            if getattr(value, field.name) != _default(field)
        ]
        return f"erg.{type(value).__name__}({', '.join(told)})"
    if isinstance(value, dict):
        return "{" + ", ".join(f"{k!r}: {_as_python(v)}" for k, v in value.items()) + "}"
    if isinstance(value, tuple):
        inside = ", ".join(_as_python(v) for v in value)
        return f"({inside},)" if len(value) == 1 else f"({inside})"
    if isinstance(value, float) and not math.isfinite(value):
        return f"float({str(value)!r})"
    return repr(value)


def _default(field: Any) -> Any:
    """Of a field of a data type; MISSING where there is none."""
    return field.default if field.default_factory is MISSING else field.default_factory()
