"""What to merge: the method, the models and their coefficients, which may contain a variable of a sweep."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from ascend_cpt.errors import ConfigError
from ascend_cpt.strict_json import shorten
from ascend_cpt.weights.merge.methods import LINEAR, METHODS, SLERP, sum_weights

_TERM = re.compile(r"(?P<sign>(?P<constant>\d+(?:\.\d*)?|\.\d+)?-)?(?P<variable>[A-Za-z_]\w*)")
# A smaller sum of weights is 0 up to rounding.
_MIN_SUM = 1e-6


@dataclass(frozen=True, kw_only=True)
class Coefficient:
    """A number, or `constant + factor × variable`."""

    constant: float
    factor: float = 0.0
    variable: str = ""

    def __str__(self) -> str:
        if not self.variable:
            return f"{self.constant:g}"
        return f"{f'{self.constant:g}' if self.constant else ''}{'-' if self.factor < 0 else ''}{self.variable}"

    def at(self, values: Mapping[str, float]) -> float:
        """Return the value with the given values of variables."""
        return self.constant + (self.factor * values[self.variable] if self.variable else 0.0)


@dataclass(frozen=True, kw_only=True)
class Values:
    """The numbers of a merge."""

    weights: tuple[float, ...]
    """One per model; `slerp` does not use them."""
    t: float | None


@dataclass(frozen=True, kw_only=True)
class Recipe:
    """A merge. Its coefficients may contain variables."""

    method: str
    base: Path | None
    """The model at t = 0 of `slerp`, or the one from which task vectors are computed; None for `linear`."""
    models: tuple[Path, ...]
    weights: tuple[Coefficient, ...]
    t: Coefficient | None
    normalize: bool

    @property
    def inputs(self) -> tuple[Path, ...]:
        """All models that are read, the base first."""
        return (*([self.base] if self.base is not None else []), *self.models)

    @property
    def variables(self) -> set[str]:
        """The names of the variables."""
        coefficients = (*self.weights, *([self.t] if self.t else []))
        return {coefficient.variable for coefficient in coefficients} - {""}

    def at(self, variables: Mapping[str, float]) -> Values:
        """Return the numbers with the given values of variables.

        Raises:
            ConfigError: a variable has no value, or a number is not possible.
        """
        if missing := sorted(self.variables - variables.keys()):
            raise ConfigError(f"{missing[0]}: has no value; use numbers, or pass --sweep {missing[0]}=0,0.5,1")
        weights = tuple(weight.at(variables) for weight in self.weights)
        t = self.t.at(variables) if self.t else None
        if t is not None and not 0 <= t <= 1:
            raise ConfigError(f"--t {t:g}: must be from 0 (the base) to 1 (the model)")
        if self.method == LINEAR and self.normalize and abs(float(sum_weights(weights))) < _MIN_SUM:
            raise ConfigError(
                f"--model: the weights {', '.join(f'{weight:g}' for weight in weights)} sum to 0 and cannot be "
                "normalized; change one, or pass --no-normalize"
            )
        return Values(weights=weights, t=t)


def parse_coefficient(text: str) -> Coefficient | None:
    """Return the coefficient in `0.5`, `NAME`, `-NAME` or `1-NAME`, or None if the text is something else."""
    try:
        number = float(text)
    except ValueError:
        number = math.nan
    if math.isfinite(number):
        return Coefficient(constant=number)
    match = _TERM.fullmatch(text)
    if match is None or not math.isnan(number) or text.lower() == "nan":
        return None
    return Coefficient(
        constant=float(match["constant"] or 0), factor=-1.0 if match["sign"] else 1.0, variable=match["variable"]
    )


def parse_model(text: str) -> tuple[Path, Coefficient]:
    """Return the folder and the coefficient in `FOLDER` or `FOLDER=COEFFICIENT`.

    Raises:
        ConfigError: the coefficient is malformed.
    """
    path, separator, rest = text.rpartition("=")
    if not separator or Path(text).is_dir():
        return Path(text), Coefficient(constant=1.0)
    coefficient = parse_coefficient(rest)
    if coefficient is None or not path:
        raise ConfigError(
            f"--model {shorten(text)}: expected FOLDER or FOLDER=WEIGHT; WEIGHT is 0.5, NAME, 1-NAME or -NAME"
        )
    return Path(path), coefficient


def make_recipe(
    method: str, models: Sequence[str], *, base: Path | None, t: str | None, normalize: bool | None
) -> Recipe:
    """Return the merge that the command line describes.

    Args:
        method: One of METHODS.
        models: `FOLDER` or `FOLDER=WEIGHT`.
        base: The base model of `slerp` and `task_arithmetic`.
        t: Position between the base and the model, for `slerp`.
        normalize: Divide by the sum of the weights. None: as in mergekit, only for `linear`.

    Raises:
        ConfigError: the method is unknown, or an argument is missing, malformed or not one of the method.
    """
    if method not in METHODS:
        raise ConfigError(f"--method {shorten(method)}: not a known merge method; known: {', '.join(METHODS)}")
    parsed = [parse_model(text) for text in models]
    if method == LINEAR and base is not None:
        raise ConfigError("--base: linear has no base; give all models with --model FOLDER=WEIGHT")
    if method != LINEAR and base is None:
        raise ConfigError(f"--base: missing; {method} needs the folder of the base model")
    if method == SLERP:
        if len(parsed) != 1 or parsed[0][1] != Coefficient(constant=1.0):
            raise ConfigError("--model: slerp merges --base with exactly one --model FOLDER, without a weight; use --t")
        if t is None:
            raise ConfigError("--t: missing; slerp needs the position from 0 (the base) to 1 (the model)")
        if normalize is not None:
            raise ConfigError("--normalize: slerp has no weights to normalize; remove it")
    elif t is not None:
        raise ConfigError(f"--t: applies only to slerp, not to {method}; give weights with --model FOLDER=WEIGHT")
    if len(parsed) < (2 if method == LINEAR else 1):
        raise ConfigError("--model: missing; pass each model to merge as --model FOLDER=WEIGHT")
    position = parse_coefficient(t) if t is not None else None
    if t is not None and position is None:
        raise ConfigError(f"--t {shorten(t)}: expected a number from 0 to 1, NAME or 1-NAME")
    return Recipe(
        method=method,
        base=base,
        models=tuple(path for path, _ in parsed),
        weights=tuple(weight for _, weight in parsed),
        t=position,
        normalize=method == LINEAR if normalize is None else normalize,
    )
