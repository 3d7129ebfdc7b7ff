"""Rules for single values of a config, each with its wording for people."""

import dataclasses
import math


@dataclasses.dataclass(frozen=True)
class Rule:
    """What one key accepts: `test(value)`, and the same in words."""

    test: object
    words: str
    choices: tuple = ()


def is_number(value):
    return isinstance(value, (int, float)) and not isinstance(value, bool) and math.isfinite(value)


def is_integer(value):
    return isinstance(value, int) and not isinstance(value, bool)


def integer(low, high=math.inf):
    words = f"an integer of at least {low}" + (f" and at most {high}" if high != math.inf else "")
    return Rule(lambda v: is_integer(v) and low <= v <= high, words)


def number(low, high=math.inf, *, open_low=False, open_high=False):
    """A finite number between low and high, either end left out where open."""

    def test(value):
        above = is_number(value) and (value > low if open_low else value >= low)
        return above and (value < high if open_high else value <= high)

    words = f"a number {'above' if open_low else 'of at least'} {low}"
    if high != math.inf:
        words += f" and {'below' if open_high else 'at most'} {high}"
    return Rule(test, words)


def choice(names):
    names = tuple(names)
    return Rule(lambda v: v in names, f"one of {', '.join(names)}", names)


def sequence(rule, *, min_length=1):
    def test(value):
        is_sequence = isinstance(value, (tuple, list)) and len(value) >= min_length
        return is_sequence and all(rule.test(item) for item in value)

    at_least = f"{min_length} or more of: " if min_length else "any number of: "
    return Rule(test, f"a tuple, {at_least}{rule.words}")


COUNT = integer(1)
FINITE = Rule(is_number, "a finite number")
LEARNING_RATE = number(0.0, open_low=True)
RATE = number(0.0, 1.0, open_high=True)
FOLDER = Rule(lambda v: isinstance(v, str) and bool(v), "a folder")
PATH = Rule(lambda v: isinstance(v, str), "a path, or '' for none")
BOOLEAN = Rule(lambda v: isinstance(v, bool), "True or False")
