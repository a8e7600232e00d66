r"""Formulas, read into trees by a fixed grammar: LaTeX and plain, nothing looked up, nothing evaluated.

A tree is a tuple: its kind, then its parts. Names of functions, constants and letters are on the lists below; what is
not on them is no formula here (`read_expression` says None), and another stage may try. Reading takes linear time;
length, depth and size are bounded.

| kind | parts |
|---|---|
| "number" | Fraction |
| "letter" | name, with its subscript |
| "constant" | "pi", "e", "i" |
| "sum", "product" | trees |
| "quotient", "power" | two trees |
| "call" | name of the function, trees |

`2\frac13` and `2 1/3` are mixed numbers, `2(3)` and `2x` products, `1/2x` is half of x; `2 3` is refused.
"""

from __future__ import annotations

import re
from fractions import Fraction
from functools import lru_cache

MAX_LENGTH = 1000  # characters
MAX_DEPTH = 60
MAX_TOKENS = 1000
MAX_MARKS = 2  # of !, % and degrees after one another
MAX_DIGITS = 80  # of one number

Tree = tuple

_TOKEN = re.compile(
    r"(?P<number>[0-9]{1,3}(?:,[0-9]{3})+(?![0-9,])(?:\.[0-9]+)?|[0-9]+(?:\.[0-9]*)?|\.[0-9]+)"
    r"|(?P<command>\\[a-zA-Z]+)|(?P<letters>[a-zA-Z]+)|(?P<space>\s+)|(?P<sign>\*\*|\^\\circ|[-+*/^_!()\[\]{}|'%])"
)
_TRIGONOMETRIC = ("sin", "cos", "tan", "cot", "sec", "csc")
_PLAIN = {
    **{name: name for name in (*_TRIGONOMETRIC, "sinh", "cosh", "tanh", "exp", "ln", "log", "lg", "sqrt", "cbrt")},
    **{"arc" + name: "arc" + name for name in _TRIGONOMETRIC[:3]},
    **{"a" + name: "arc" + name for name in _TRIGONOMETRIC[:3]},
    "abs": "abs", "floor": "floor", "ceil": "ceil", "gcd": None, "lcm": None, "max": None, "min": None, "mod": None,
}  # fmt: skip
_GREEK = frozenset(
    """alpha beta gamma delta epsilon varepsilon zeta eta theta vartheta iota kappa lambda mu nu xi rho sigma tau
    upsilon phi varphi chi psi omega Gamma Delta Theta Lambda Xi Sigma Phi Psi Omega ell hbar""".split()  # noqa: SIM905
)
_TIMES = frozenset(["*", r"\times", r"\cdot", r"\ast"])
_OVER = frozenset(["/", r"\div"])
_CLOSING = {"(": ")", "[": "]", "{": "}"}
_FENCES = {r"\lfloor": (r"\rfloor", "floor"), r"\lceil": (r"\rceil", "ceil"), r"\lvert": (r"\rvert", "abs")}
_WORDS = re.compile("|".join(sorted([*_PLAIN, "pi", "infty", "infinity"], key=len, reverse=True)))
_WORD = re.compile(r"[a-zA-Z]*[ijloIJLO][a-zA-Z]*(?<=...)")
_DERIVATIVE = re.compile(r"\\frac\{d(?:\^[0-9])?\}\{d")  # d/dx is no quotient
_OPAQUE = frozenset("fgh")  # letters that take arguments: f(x+1) is no product


class _NoFormulaError(Exception):
    pass


@lru_cache(maxsize=512)
def read_expression(text: str) -> Tree | None:
    """Read a normalised answer as one formula; None: it is something else, or too large."""
    if not text or len(text) > MAX_LENGTH or not text.isascii() or _DERIVATIVE.search(text):
        return None
    try:
        reader = _Reader(_tokens(text))
        tree = reader.sum(0)
        return tree if reader.at_end() else None
    except _NoFormulaError:
        return None


def letters(tree: Tree) -> frozenset[str]:
    """Collect the letters of a tree."""
    if tree[0] == "letter":
        return frozenset([tree[1]])
    return frozenset().union(*(letters(part) for part in tree[1:] if isinstance(part, tuple)))


def has_constant(tree: Tree, name: str) -> bool:
    """Whether a constant is part of a tree."""
    return tree == ("constant", name) or any(has_constant(part, name) for part in tree[1:] if isinstance(part, tuple))


def _tokens(text: str) -> list[tuple[str, str]]:
    tokens, end = [], 0
    for match in _TOKEN.finditer(text):
        if match.start() != end or len(tokens) > MAX_TOKENS:
            raise _NoFormulaError
        end = match.end()
        kind = match.lastgroup
        if kind == "letters":
            tokens += _split_letters(match[0])
        elif kind != "space":
            tokens.append((kind, match[0]))
        elif tokens and tokens[-1][0] == "number" and text[end : end + 1].isdigit():
            tokens.append(("gap", " "))
    if end != len(text):
        raise _NoFormulaError
    return tokens


def _split_letters(run: str) -> list[tuple[str, str]]:
    """Cut "xsqrt" into x and sqrt, and "xy" into x and y."""
    if len(run) > 2 and _WORD.search(_WORDS.sub("", run)):
        raise _NoFormulaError  # "mol" is no product of m, o and l
    tokens, i = [], 0
    while i < len(run):
        word = _WORDS.match(run, i)
        if word and _PLAIN.get(word[0], "") is not None and word[0] not in ("infty", "infinity"):
            tokens.append(("command", "\\" + word[0]))
            i = word.end()
        elif word:
            raise _NoFormulaError
        else:
            tokens.append(("letter", run[i]))
            i += 1
    return tokens


class _Reader:
    """A position in a list of tokens; each method reads one rule of the grammar from there."""

    def __init__(self, tokens: list[tuple[str, str]]):
        self.tokens = [*tokens, ("end", "")]
        self.i = 0
        self.bars = 0  # open |

    @property
    def kind(self) -> str:
        return self.tokens[self.i][0]

    @property
    def text(self) -> str:
        return self.tokens[self.i][1]

    def at_end(self) -> bool:
        return self.kind == "end"

    def take(self, *texts: str) -> bool:
        if self.kind != "end" and self.text in texts:
            self.i += 1
            return True
        return False

    def need(self, text: str) -> None:
        if not self.take(text):
            raise _NoFormulaError

    def sum(self, depth: int) -> Tree:
        if depth > MAX_DEPTH:
            raise _NoFormulaError
        terms = [self.signed(depth)]
        while self.text in ("+", "-") and self.kind == "sign":
            terms.append(self.signed(depth))
        return terms[0] if len(terms) == 1 else ("sum", *terms)

    def signed(self, depth: int) -> Tree:
        negative = False
        while self.text in ("+", "-") and self.kind == "sign":
            negative ^= self.text == "-"
            self.i += 1
        term = self.product(depth)
        return ("product", _number(-1), term) if negative else term

    def product(self, depth: int) -> Tree:
        factors = [self.power(depth)]
        while True:
            if self.take(*_TIMES):
                factors.append(self.factor(depth))
            elif self.take(*_OVER):
                factors.append(("quotient", _number(1), self.factor(depth)))
            elif self.starts_factor():
                if self.kind in ("number", "gap"):
                    raise _NoFormulaError  # "x2", "(3)4", "2 3"
                factors.append(self.power(depth))
            else:
                return factors[0] if len(factors) == 1 else ("product", *factors)

    def factor(self, depth: int) -> Tree:
        if self.take("-"):
            return ("product", _number(-1), self.factor(depth + 1)) if depth <= MAX_DEPTH else self.sum(depth)
        self.take("+")
        return self.power(depth)

    def starts_factor(self) -> bool:
        if self.kind in ("number", "letter", "gap"):
            return True
        if self.kind == "command":
            return self.text not in _TIMES | _OVER and not self.text.startswith(r"\r")
        return self.text in ("(", "[", "{") or (self.text == "|" and self.bars == 0)

    def power(self, depth: int) -> Tree:
        tree, before = self.base(depth), self.i
        while self.i <= before + MAX_MARKS:
            if self.take("!"):
                tree = ("call", "factorial", tree)
            elif self.take("%"):
                tree = ("quotient", tree, _number(100))
            elif self.take(r"^\circ"):
                tree = ("call", "degrees", tree)
            elif self.take("^", "**"):
                return self.raised(("power", tree, self.exponent(depth + 1)), depth)
            else:
                return tree
        raise _NoFormulaError

    def raised(self, tree: Tree, depth: int) -> Tree:
        """Read what may follow an exponent: a factorial."""
        return ("call", "factorial", tree) if self.take("!") else tree

    def exponent(self, depth: int) -> Tree:
        if depth > MAX_DEPTH:
            raise _NoFormulaError
        if self.take("-"):
            return ("product", _number(-1), self.exponent(depth + 1))
        self.take("+")
        tree = self.base(depth)
        return ("power", tree, self.exponent(depth + 1)) if self.take("^", "**") else tree

    def base(self, depth: int) -> Tree:
        kind, text = self.tokens[self.i]
        if depth > MAX_DEPTH or kind in ("end", "gap"):
            raise _NoFormulaError
        self.i += 1
        if kind == "number":
            return self.number(text)
        if kind == "letter":
            return self.letter(text, depth)
        if kind == "command":
            return self.command(text[1:], depth)
        if text in _CLOSING:
            bars, self.bars = self.bars, 0
            tree = self.sum(depth + 1)
            self.need(_CLOSING[text])
            self.bars = bars
            return tree
        if text == "|" and self.bars == 0:
            self.bars = 1
            tree = ("call", "abs", self.sum(depth + 1))
            self.need("|")
            self.bars = 0
            return tree
        raise _NoFormulaError

    def number(self, text: str) -> Tree:
        whole = _read_number(text)
        gap = self.take(" ") if self.kind == "gap" else False
        if "." in text or not (gap or self.text == r"\frac"):
            if gap:
                raise _NoFormulaError
            return whole
        start = self.i
        part = self.plain_fraction(gap)
        if part is not None and 0 < part < 1:
            return _number(whole[1] + part)
        if gap:
            raise _NoFormulaError
        self.i = start
        return whole

    def plain_fraction(self, gap: bool) -> Fraction | None:
        r"""Read 1/3 after a gap, or \frac{1}{3}, of plain whole numbers."""
        ahead = [text for _, text in self.tokens[self.i : self.i + 7]]
        shape, places = (("d", "/", "d"), (0, 2)) if gap else ((r"\frac", "{", "d", "}", "{", "d", "}"), (2, 5))
        if len(ahead) < len(shape):
            return None
        if any(not text.isdigit() if want == "d" else text != want for want, text in zip(shape, ahead, strict=False)):
            return None
        self.i += len(shape)
        top, bottom = (_read_number(ahead[place])[1] for place in places)
        return top / bottom if bottom else None

    def letter(self, text: str, depth: int) -> Tree:
        name = text + self.subscript() + ("'" * self.primes())
        if text in _OPAQUE and self.text == "(":
            return ("call", "unknown " + name, self.base(depth + 1))
        constants = {"e": "e", "i": "i"}
        return ("constant", constants[name]) if name in constants else ("letter", name)

    def primes(self) -> int:
        count = 0
        while self.take("'"):
            count += 1
        return count

    def subscript(self) -> str:
        """Read _1, _n or _{10}, of letters and figures."""
        if not self.take("_"):
            return ""
        if self.kind in ("number", "letter"):
            self.i += 1
            return "_" + self.tokens[self.i - 1][1]
        self.need("{")
        name = ""
        while self.kind in ("number", "letter"):
            name += self.text
            self.i += 1
        self.need("}")
        return "_" + name

    def command(self, name: str, depth: int) -> Tree:
        if name in ("pi", "Pi"):
            return ("constant", "pi")
        if name in _GREEK:
            return ("letter", "\\" + name + self.subscript())
        if name in ("frac", "binom"):
            top, bottom = self.group(depth), self.group(depth)
            return ("quotient", top, bottom) if name == "frac" else ("call", "binomial", top, bottom)
        if name == "sqrt":
            index = _number(2)
            if self.take("["):
                index = self.sum(depth + 1)
                self.need("]")
            return ("call", "root", self.group(depth), index)
        if "\\" + name in _FENCES:
            closing, function = _FENCES["\\" + name]
            tree = self.sum(depth + 1)
            self.need(closing)
            return ("call", function, tree)
        if _PLAIN.get(name):
            return self.function(_PLAIN[name], depth)
        raise _NoFormulaError

    def group(self, depth: int) -> Tree:
        """Read the argument of a command: in braces or parentheses, or one figure or letter."""
        if self.text in ("{", "("):
            return self.base(depth + 1)
        if self.kind in ("number", "letter"):
            return self.base(depth + 1)
        if self.kind == "command" and self.text[1:] in ("pi", *_GREEK):
            return self.base(depth + 1)
        raise _NoFormulaError

    def function(self, name: str, depth: int) -> Tree:
        if name in ("sqrt", "cbrt"):
            return ("call", "root", self.group(depth), _number(3 if name == "cbrt" else 2))
        base = self.logarithm_base(depth) if name in ("log", "lg") else None
        exponent = self.exponent(depth + 1) if self.take("^") else None
        if exponent == ("product", _number(-1), _number(1)) and name in _TRIGONOMETRIC[:3]:
            name, exponent = "arc" + name, None
        argument = self.argument(depth)
        tree = ("call", name, argument) if base is None else ("call", "log", argument, base)
        return tree if exponent is None else ("power", tree, exponent)

    def logarithm_base(self, depth: int) -> Tree | None:
        if self.take("_"):
            kind, text = self.tokens[self.i]
            if kind != "number":
                return self.base(depth + 1)
            self.i += 1
            self.take(" ")  # \log_2 8
            return _read_number(text)
        return _number(10) if self.tokens[self.i - 1][1] == r"\lg" else None

    def argument(self, depth: int) -> Tree:
        """Read what a function is applied to: brackets, or all simple factors that follow, as in sin 2x cos x."""
        if self.text in ("(", "[", "{", "|") or self.kind == "command":
            tree = self.base(depth + 1)
            return ("call", "degrees", tree) if self.take(r"^\circ") else tree
        factors = []
        while self.kind in ("number", "letter") or self.text in (
            r"\pi",
            r"\frac",
            r"\sqrt",
            *(f"\\{g}" for g in _GREEK),
        ):
            factors.append(self.power(depth + 1))
        if not factors:
            raise _NoFormulaError
        return factors[0] if len(factors) == 1 else ("product", *factors)


def _number(value: int | Fraction) -> Tree:
    return ("number", Fraction(value))


def _read_number(text: str) -> Tree:
    if len(text) > MAX_DIGITS:
        raise _NoFormulaError
    return _number(Fraction(text.replace(",", "").rstrip(".")))
