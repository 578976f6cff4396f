"""Code in what should be talk: syntax of Python and C-like languages in generated dialogue."""

import re

CODE_ABOVE = 0.1
"""Share of lines, by length, from which a text looks like code."""

_SPEAKER = re.compile(r"^\s*(?:[A-Z][\w .'-]{0,30}|user|assistant|system|bot|human):\s+", re.IGNORECASE)

# Each matches what hardly any sentence holds; a line needs one
_SYNTAX = tuple(
    re.compile(pattern)
    for pattern in (
        # statements of Python
        r"^\s*(?:async\s+)?def\s+\w+\s*\(.*",
        r"^\s*class\s+\w+\s*(?:\([\w\s.,=\[\]]*\))?\s*:\s*$",
        r"^\s*(?:from\s+[\w.]+\s+)?import\s+[\w.*]+(?:\s+as\s+\w+)?(?:\s*,\s*[\w.]+(?:\s+as\s+\w+)?)*\s*(?:\(|;|#.*)?$",
        r"^\s*(?:el)?if\s+.*[\w\])\"']\s*:\s*(?:#.*)?$",
        r"^\s*(?:else|try|finally)\s*:\s*$",
        r"^\s*(?:for|async for)\s+[\w,\s()]+\s+in\s+.*:\s*$",
        r"^\s*(?:while|with|except)\b.*[\w\])]\s*:\s*$",
        r"^\s*@\w+(?:\.\w+)*(?:\(.*\))?\s*$",
        r"^\s*(?:return|raise|yield|assert|del)\s+(?:not\s+)?[\w.]*[\w\])\"'}]\s*;?\s*$",
        r"^\s*(?:return|raise|yield|assert)\s+[\w.]*[(\[{=\"']",
        r"^\s*(?:return|yield)\s+[\w.]+\s+(?:[+*/%]|-\s\d)",
        r"^\s{2,}(?:return|pass|break|continue)\s*;?\s*$",
        # assignments, comparisons and arrows
        r"^\s*[\w.]+(?:\[[^\]]*\])?(?:\s*,\s*[\w.]+)*\s*(?:[-+*/%|&^]|//|\*\*|<<|>>)?=\s*[^=\s]",
        r"^\s*\w+\s*:\s*[\w.\[\], |]+\s=\s\S",
        r"[\w\])\"']\s*(?:===?|!=|<=|>=|:=|&&|\|\||\+\+|\+=|-=)\s*[\w(\[\"'-]",
        r"->|=>|\w::\w",
        # calls, attributes, indices
        r"\b[a-zA-Z_]\w*\.[a-zA-Z_]\w*\(",
        r"\b\w*_\w*\(|\b[a-z]\w*\(\)|\bself\.\w",
        r"^\s*[\w.]+\((?:[^()]|\([^()]*\))*\)\s*;?\s*$",
        r"\b[a-zA-Z_]\w*\[[^\]\s]*\]",
        r"\b__\w+__\b",
        # a row of a table of data
        r"^\s*(?:\(|\[)?[\"'][\w. -]+[\"']\s*[:,]\s*[\"'\w({\[-].*,\s*(?:#.*)?$",
        # C and its relatives
        r"[)\]\"']\s*;\s*(?://.*|/\*.*)?$",
        r"^\s*[{}\])]+\s*[;,]?\s*$|\)\s*\{\s*$|^\s*\}\s*(?:else|catch|while)\b",
        r"^\s*#\s*(?:include|define|ifdef|ifndef|endif|pragma|if|else|undef)\b",
        r"^\s*(?:static|const|unsigned|struct|typedef|extern|int|void|char|double)\s+[\w*&<>\[\] ]*[=;({]",
        r"^\s*(?:public|private|protected|const|let|var)\s+\w[\w<>\[\], ]*\s*(?:=[^=]|\([\w\s,]*\)\s*\{|\{)",
        r"^\s*(?://|/\*|\*/)",
        r"</?[a-z][a-z0-9]*(?:\s+[a-z-]+=\"[^\"]*\")*\s*/?>",
        r"\b(?:console\.log|System\.out|printf|std)\b\s*[(.:]",
        # a fence of Markdown
        r"^\s*```",
    )
)


def code_share(text: str) -> float:
    """Share of the text that stands on lines with syntax of code, by characters without spaces; 0 for no text.

    The name of a speaker that opens a line ("User: ") is taken off first.
    """
    code = total = 0
    for line in text.splitlines():
        size = len("".join(line.split()))
        total += size
        said = _SPEAKER.sub("", line, count=1)
        code += size * any(pattern.search(said) for pattern in _SYNTAX)
    return code / total if total else 0.0


def looks_like_code(text: str) -> bool:
    """Whether ``CODE_ABOVE`` or more of the text is code.

    Of passages of 500 characters it calls code: none of 3,858 of presidential addresses, 1 in 3,800 of the same wrapped
    at 60 characters, 94 % of Python's standard library (the others are docstrings and tables), 97 % of C headers.
    Measured by tests/harness/test_metrics_code.py.
    """
    return code_share(text) >= CODE_ABOVE
