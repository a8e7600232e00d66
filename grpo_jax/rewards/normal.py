r"""One written form for many: what `\left( \dfrac12 , 5\text{ cm} \right)` and its variants have in common.

Two answers with equal normal forms say the same. The reverse does not hold: values are for `quantity.py`, structure
for `structure.py`, algebra for `symbolic.py`. Every pattern runs in linear time, since the text is a model's.
"""

from __future__ import annotations

import re
from functools import lru_cache

MAX_LENGTH = 4000  # characters; a longer answer is only ever compared as it is

_SUPERSCRIPTS = str.maketrans("⁰¹²³⁴⁵⁶⁷⁸⁹⁺⁻ⁿ", "0123456789+-n")
_SUBSCRIPTS = str.maketrans("₀₁₂₃₄₅₆₇₈₉", "0123456789")
_CHARACTERS = {chr(code): chr(code - 0xFEE0) for code in range(0xFF01, 0xFF5F)} | {
    "−": "-", "–": "-", "—": "-", "‐": "-", "‑": "-", "×": r"\times ", "÷": "/", "∕": "/", "⁄": "/", "·": r"\cdot ",
    "⋅": r"\cdot ", "∗": "*", "π": r"\pi ", "√": r"\sqrt", "∞": r"\infty ", "≤": r"\leq ", "≥": r"\geq ", "≠": r"\ne ",
    "°": r"^\circ ", "º": r"^\circ ", "±": r"\pm ", "∓": r"\mp ", "∪": r"\cup ", "∩": r"\cap ", "∈": r"\in ",
    "∅": r"\emptyset ", "½": r"\frac{1}{2}", "⅓": r"\frac{1}{3}", "⅔": r"\frac{2}{3}", "¼": r"\frac{1}{4}",
    "¾": r"\frac{3}{4}", "⅕": r"\frac{1}{5}", "⅛": r"\frac{1}{8}", "。": ".", "、": ",", "【": "[", "】": "]", "‘": "'",
    "’": "'", "“": '"', "”": '"', "\u00a0": " ", "\u2009": " ", "\u202f": " ", "\u3000": " ", "\u200b": "",
    "\u2060": "", "\ufeff": "", "′": "'", "ℝ": r"\mathbb{R}", "≈": r"\approx ", "∨": r"\vee ", "∧": r"\wedge ",
    "〈": "(", "〉": ")", "⟨": "(", "⟩": ")", "∖": r"\setminus ",
} | {chr(0x2460 + i): rf"\textcircled{{{i + 1}}}" for i in range(20)}  # fmt: skip
_GREEK = """α alpha β beta γ gamma δ delta ε epsilon θ theta λ lambda μ mu µ mu ρ rho σ sigma τ tau φ phi ω omega
    Δ Delta Σ Sigma Ω Omega""".split()  # noqa: SIM905
_CHARACTERS |= {letter: rf"\{name} " for letter, name in zip(_GREEK[::2], _GREEK[1::2], strict=True)}
_TABLE = str.maketrans(_CHARACTERS)

_WRAPPERS = [("$$", "$$"), ("$", "$"), (r"\(", r"\)"), (r"\[", r"\]"), ("**", "**"), ("`", "`"), ('"', '"'), ("'", "'")]
_BOXES = (
    r"\boxed{",
    r"\fbox{",
    r"\framebox{",
    r"\text{",
    r"\textbf{",
    r"\mathrm{",
    r"\mathbf{",
    r"\texttt{",
    r"\mbox{",
)

_SUM = r"[0-9]{1,3}(?:,[0-9]{3})+(?:\.[0-9]+)?|[0-9]+(?:\.[0-9]+)?|\.[0-9]+"  # of money
_AFTER_SUM = r"\.?[0-9]|[a-zA-Z\\^]| ?[mbt][a-z]+ion| ?thousand"  # which would not be the whole sum
_REWRITES = [
    (re.compile(r"[⁰¹²³⁴⁵⁶⁷⁸⁹⁺⁻ⁿ]+"), lambda m: "^{" + m[0].translate(_SUPERSCRIPTS) + "}"),
    (re.compile(r"[₀₁₂₃₄₅₆₇₈₉]+"), lambda m: "_{" + m[0].translate(_SUBSCRIPTS) + "}"),
    # A separator between thousands: 1{,}000, 1\,000, 1,\!000.
    (re.compile(r"(?<=[0-9])(?:\{,\}|,?\\[,!;:]|\\ |~)(?=[0-9]{3}(?![0-9]))"), ","),
    # Not one: in the list 1, 200 the space stays.
    (re.compile(r"(?<=[0-9]), (?=[0-9]{3}(?![0-9]))"), ",\x01"),
    (re.compile(r"\\(?:left|right|[bB]igg?[lrm]?)(?![a-zA-Z])\.?"), ""),
    (re.compile(r"\\(?:displaystyle|textstyle|limits|nolimits|rm|bf|it|hspace\{[^{}]*\})(?![a-zA-Z])"), " "),
    (re.compile(r"(?<!\\)\\(?:[,;:! ]|quad|qquad)(?![a-zA-Z])|~"), " "),
    (re.compile(r"\\[dtc]frac(?![a-zA-Z])"), r"\\frac"),
    (re.compile(r"\\(?:mathbb|Bbb)\s*\{?\s*([A-Z])\s*\}?|\\R(?![a-zA-Z])"), lambda m: rf"\mathbb{{{m[1] or 'R'}}}"),
    (re.compile(r"\\(?:text(?:bf|it|rm|sf)?|math(?:rm|bf|sf|it)|[mh]box|operatorname\*?)\s*\{([^{}]*)\}"), r" \1 "),
    (re.compile(r"\\(?:langle|lbrack)(?![a-zA-Z])"), "("),
    (re.compile(r"\\(?:rangle|rbrack)(?![a-zA-Z])"), ")"),
    (re.compile(r"(?<=[0-9 ])([AaPp])\. ?[Mm]\.?(?![a-zA-Z])"), lambda m: f" {m[1]}m".lower()),
    (re.compile(r"(?<=[0-9]) ?([AaPp])[Mm](?![a-zA-Z])"), lambda m: f" {m[1]}m".lower()),
    (re.compile(r"\\(?:%|percent(?![a-zA-Z]))"), "%"),
    (re.compile(rf"(?<![a-zA-Z])(?:US|HK)?\\\$ ?({_SUM})(?!{_AFTER_SUM})"), r"\1 dollars "),
    (re.compile(r"(?:US|HK)?\\?\$"), " "),
    (re.compile(r"\\(?:degree|degrees)(?![a-zA-Z])|\^\s*\{?\s*\\circ\s*\}?"), r"^\\circ "),
    (re.compile(r"\\le(?![a-zA-Z])|\\leqslant(?![a-zA-Z])|<="), r"\\leq "),
    (re.compile(r"\\ge(?![a-zA-Z])|\\geqslant(?![a-zA-Z])|>="), r"\\geq "),
    (re.compile(r"\\neq(?![a-zA-Z])"), r"\\ne "),
    (re.compile(r"\\lt(?![a-zA-Z])"), "<"),
    (re.compile(r"\\gt(?![a-zA-Z])"), ">"),
    (re.compile(r"\\lbrace(?![a-zA-Z])"), r"\\{"),
    (re.compile(r"\\rbrace(?![a-zA-Z])"), r"\\}"),
    (re.compile(r"\\(?:varnothing|empty)(?![a-zA-Z])|\\\{\s*\\\}"), r"\\emptyset "),
    (re.compile(r"\\(?:mid|vert|lvert|rvert)(?![a-zA-Z])"), "|"),
    (re.compile(r"(?<![a-zA-Z\\])(?:infinity|inf|oo)(?![a-zA-Z])"), r"\\infty "),
    (re.compile(r"\^\s*\{?\s*\\prime\s*\}?"), "'"),
    (re.compile(r"\\(?:doteq|approxeq|simeq)(?![a-zA-Z])"), r"\\approx "),
    (re.compile(r"\\(?:lor)(?![a-zA-Z])"), r"\\vee "),
    (re.compile(r"\\(?:land)(?![a-zA-Z])"), r"\\wedge "),
    (re.compile(r"\\(?:backslash|smallsetminus)(?![a-zA-Z])"), r"\\setminus "),
    # \frac12, \frac1{2}, \frac{1}2, \sqrt2
    (re.compile(r"\\frac\s*([0-9a-zA-Z])\s*([0-9a-zA-Z])"), r"\\frac{\1}{\2}"),
    (re.compile(r"\\frac\s*([0-9a-zA-Z])\s*\{"), r"\\frac{\1}{"),
    (re.compile(r"(\\frac\s*\{[^{}]*\})\s*([0-9a-zA-Z])"), r"\1{\2}"),
    (re.compile(r"\\sqrt\s*([0-9a-zA-Z])"), r"\\sqrt{\1}"),
    (re.compile(r"(\\sqrt\s*\[[^\[\]{}]*\])\s*([0-9a-zA-Z])"), r"\1{\2}"),
    (re.compile(r"\{?([0-9]{1,4}) ?\\choose ?([0-9]{1,4})\}?"), r"\\binom{\1}{\2}"),
    (re.compile(r"C_\{?([0-9]{1,4})\}?\^\{?([0-9]{1,4})\}?(?![0-9])"), r"\\binom{\1}{\2}"),
    (re.compile(r"[,;(] ?\(?[a-z] ?\\in ?(?:\\mathbb\{Z\}|Z)\)?$"), ""),
    (re.compile(r"([\^_])\s*\{\s*([0-9a-zA-Z])\s*\}"), r"\1\2"),
    (re.compile(r"(?<=[0-9])\{(\\frac\{[^{}]*\}\{[^{}]*\})\}"), r"\1"),
]  # fmt: skip
# Spaces mean something between two letters or digits only ("5 cm", "1 1/2"; "1 2" is not 12).
_REPEATED = re.compile(r"((?<![0-9])[0-9]{0,9}\.[0-9]{0,9}?)([0-9]{1,6}?)\2{1,40}(?:\.\.\.|…|\\[lc]?dots)")  # 0.1666...
_SPACES = re.compile(r"\s+")
_IDLE_SPACE = re.compile(r"(?<![0-9a-zA-Z\u4e00-\u9fff]) | (?![0-9a-zA-Z\u4e00-\u9fff])")
_COMMAND_SPACE = re.compile(r"(\\[a-zA-Z]+) (?=[a-zA-Z])")


def closing_brace(text: str, start: int) -> int | None:
    r"""Find the brace that closes the one at `start`, passing over `\{` and `\}`; None: it stays open."""
    depth, i = 0, start
    while i < len(text):
        character = text[i]
        if character == "\\":
            i += 1
        elif character == "{":
            depth += 1
        elif character == "}":
            depth -= 1
            if depth == 0:
                return i
        i += 1
    return None


def latex(text: str) -> str:
    """Write an answer's special characters as LaTeX and take away what only wraps it."""
    return unwrapped(_REPEATED.sub(r"\1\\overline{\2}", text.translate(_TABLE)))


def unwrapped(text: str) -> str:
    r"""Take away what only wraps the whole: `$..$`, `\(..\)`, `\[..\]`, `\boxed{..}`, `**..**`, a final full stop."""
    for _ in range(8):
        before = text
        text = text.strip().rstrip(".,;:。，；：").strip()
        if text.endswith("\\") and not text.endswith("\\\\"):
            text = text[:-1].strip()  # the backslash of a "\," or "\;" that ended the text
        for opening, closing in _WRAPPERS:
            inner = text[len(opening) : -len(closing)]
            whole = len(text) > len(opening) + len(closing) and text.startswith(opening) and text.endswith(closing)
            if whole and opening not in inner and closing not in inner:
                text = inner
        if text.startswith("{") and closing_brace(text, 0) == len(text) - 1:
            text = text[1:-1]
        for box in _BOXES:
            if text.startswith(box) and closing_brace(text, len(box) - 1) == len(text) - 1:
                text = text[len(box) : -1]
        if text == before:
            break
    return text


@lru_cache(maxsize=4096)
def normalise(text: str) -> str:
    r"""Write `text` in its normal form, e.g. `$\dfrac12\text{ cm}.$` as `\frac{1}{2} cm`.

    Longer than MAX_LENGTH: as it is.
    """
    if len(text) > MAX_LENGTH:
        return text
    text = _SPACES.sub(" ", latex(text))
    for pattern, replacement in _REWRITES:
        text = pattern.sub(replacement, text)
    text = _COMMAND_SPACE.sub("\\1\x00", _SPACES.sub(" ", unwrapped(text)))
    return _IDLE_SPACE.sub("", text).replace("\x00", " ").replace("\x01", " ")
