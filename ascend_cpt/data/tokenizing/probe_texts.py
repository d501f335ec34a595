"""Texts on which tokenizers often differ: whitespace, digits, contractions, scripts, combining marks, long runs."""

from __future__ import annotations

PROBE_TEXTS: tuple[str, ...] = (
    "",
    " ",
    "\n",
    "\t\t \n\n  \r\n \r \u00a0\u3000 \u2028\u2029\x85\x0b\x0c",
    "   leading and trailing   ",
    "a" * 3000,
    " " * 3000 + "x",
    "\n" * 500 + " x" + "\n " * 300,
    "ab" * 1500 + "=" * 1000 + "-" * 999,
    "0123456789" * 30 + " 1 12 123 1234 12345 3.14159 1,000,000 0x7fff 1e-5 \u0663\u0664 \u00bd \u2167 \u00b2",
    "don't we'll I'VE they'Re it'\u017f 's'S 'd'D 'm'M l'\u00e9t\u00e9 \u2019s rock'n'roll '",
    "def f(x: int) -> str:\n    return {'a': [x ** 2, \"b\\n\"]}[0]  # \u00e9\n\n\n\tif x:\n\t\tpass\r\n",
    "https://example.org/a/b?c=d&e=%20#frag user@example.org C:\\path\\file $HOME ${x} <b>bold</b> &amp;",
    "\u4f60\u597d\uff0c\u4e16\u754c\u3002\u3053\u3093\u306b\u3061\u306f \uc548\ub155\ud558\uc138\uc694 "
    "\u0e2a\u0e27\u0e31\u0e2a\u0e14\u0e35",
    "\u0645\u0631\u062d\u0628\u0627 \u0628\u0627\u0644\u0639\u0627\u0644\u0645 \u05e9\u05dc\u05d5\u05dd "
    "\u0928\u092e\u0938\u094d\u0924\u0947 \u0434\u043e\u0431\u0440\u044b\u0439",
    "e\u0301 \u00e9 a\u0308\u0323 a\u0323\u0308 \u1e69 s\u0323\u0307 s\u0307\u0323 \u212b \u2126 \ufb01 "
    "\u0344 \u1100\u1161\u11a8",
    "\u0d15\u0d3b\u0d3c \u0d3b\u0323 \u0c15\u0c3c\u0301 \u093c\u0301 x\u0315\u0300\u05ae\u302a",
    "\U0001f600\U0001f468\u200d\U0001f469\u200d\U0001f467\U0001f3fd \U0001f1e9\U0001f1ea \u2764\ufe0f "
    "\U00010348\U0001d11e\U0002070e",
    "\U000113c2 \U0001611e \U00016d67 \U00011de5 \U00016ff4 \U00011de0a \u0378 \U000e0001 \U0010fffd",
    "\x00\x01\x1f\x7f\x80\x9f \ufeff \ufffd \ufffe \u200b\u200c\u200d\u2060 \u00ad \ue000",
    "<s> </s> <unk> <pad> <|endoftext|> <|im_start|>user<|im_end|> <|begin_of_text|><|eot_id|> [INST] "
    "<0x0A> \u2581 \u2581\u2581x",
    "ZaLgO\u0300\u0301\u0302\u0303\u0304\u0305\u0306\u0307\u0308\u0309\u030a\u030b" * 20,
    "iVBORw0KGgoAAAANSUhEUgAAAAEAAAABCAYAAAAfFcSJAAAADUlEQVR42mNk+M9QDwADhgGAWjR9awAAAABJRU5ErkJggg==" * 5,
    "CamelCaseWord snake_case_word SCREAMING_CASE kebab-case McDonald's \u01c5 \u00df\u1e9e \u0130i\u0131I",
    "$\\frac{a}{b} \\leq \\sum_{i=0}^{n} x_i^2$ \u2211\u222b\u221a\u2202 \u2248 \u2260 \u00b1 \u2192 "
    "\u2190 \u20ac\u00a3\u00a5",
)
