"""Numbers that a plan may hold, as types, so that a slip in a file of overrides is found before any work starts."""

from typing import Annotated, Any

from pydantic import BeforeValidator, Field, ValidationError, ValidatorFunctionWrapHandler, WrapValidator
from pydantic_core import PydanticCustomError


def _expected(wanted: str) -> WrapValidator:
    """Refuse a number in our words; one that fits stays as it was given, so that 3 is not written as 3.0."""

    def check(value: Any, validate: ValidatorFunctionWrapHandler) -> Any:
        try:
            validate(value)
        except ValidationError as error:
            raise PydanticCustomError("number", "expected {wanted}", {"wanted": wanted}) from error
        return value

    return WrapValidator(check)


def _refuse_other_axes(value: Any) -> Any:
    if isinstance(value, list | tuple) and len(value) != 3:
        raise PydanticCustomError("axes", "expected a number for each of three axes")
    return value


_THREE = BeforeValidator(_refuse_other_axes)
_STRICT = Field(strict=True, allow_inf_nan=False)

Count = Annotated[int, Field(strict=True, ge=1), _expected("a whole number from 1")]
Whole = Annotated[int, Field(strict=True, ge=0), _expected("a whole number from 0")]
Amount = Annotated[float, _STRICT, Field(ge=0), _expected("a number from 0")]
Positive = Annotated[float, _STRICT, Field(gt=0), _expected("a number above 0")]
Share = Annotated[float, _STRICT, Field(ge=0, le=1), _expected("a number from 0 to 1")]
Below1 = Annotated[float, _STRICT, Field(ge=0, lt=1), _expected("a number from 0 to below 1")]
Number = Annotated[float, _STRICT, _expected("a number")]
Limit = Annotated[Annotated[float, _STRICT] | None, _expected("a number or null")]
Minutes = Annotated[Annotated[float, _STRICT, Field(gt=0)] | None, _expected("a number above 0, or null")]
Lengths = Annotated[tuple[Positive, Positive, Positive], _THREE]
Sizes = Annotated[tuple[Count, Count, Count], _THREE]
