"""Names that a hostile study, dataset or device may have: markup, terminal escapes, formulas, paths, SQL."""

from __future__ import annotations

COMMENTS = (
    "a\nclasses = 3", "a\r\nclasses = 3", "a\rb", "a\u2028b", "a\x85b", "\x1b[2J\x1b]0;title\x07", "\u202egnp.exe",
    "<script>alert(1)</script>", '"""', "\x00", "\ud800", "#", "[stem]", "",
)  # fmt: skip
"""Names that could end a comment of TOML or Python."""
MARKUP = (
    "</script><script>alert(1)</script>", '"><img src=x onerror=alert(1)>', "' onfocus=alert(1) autofocus='",
    "<!-- <script>", "&lt;b&gt; &amp;", "\u202egnp.exe\u2066 \u200f", "\x1b[31mred\x07\x00\ud800", "שלום עולם",
    "${alert(1)} %{x} {{7*7}}", "\u2028\u2029",
)  # fmt: skip
"""Names that could become elements, attributes or scripts of a page."""
PATHS = (
    "", " ", "  ", ".", "..", "...", "a.", "a..", "a...", " a", "a ", ".hidden", "-", "--", "-rf", "_a", "+a", "~",
    "~root", "/", "//", "/etc", "/etc/passwd", "a/b", "a/../b", "../a", "../../a", "./a", "a/", "a/.", "a//b", "..\\a",
    "a\\b", "C:\\a", "C:", "\\\\host\\share", "file:///etc", "a:b", "a|b", "a;b", "a&b", "$(id)", "`id`", "$HOME",
    "%2e%2e%2f", "<script>alert(1)</script>", "<img src=x onerror=alert(1)>", "&lt;", "{{7*7}}", "${jndi:ldap://x}",
    "%s%s%n", "'; DROP TABLE studies; --", '" OR 1=1 --', "a'b", 'a"b', "*", "a?b", "[a]", "[bold red]a[/]",
    "\x1b[31mred", "\x1b]0;title\x07", "\x1b[2J", "a\x1b", "\x9b31m", "a\nb", "a\rb", "a\tb", "a\x07", "a\x08\x08b",
    "a\x7f", "a\x85b", "\u202eabc", "a\u2066b", "a\u200bb", "\ufeffa", "a\u2028b", "naïve", "研究", "☃", "\U0001f600",
    "a\u0301", "\udcff", "a" * 101, "a" * 255, "a" * 256, "a" * 5000, "é" * 128, "\n", "\x1b" * 300,
)  # fmt: skip
"""Names of a study that are refused: none of them may become a path."""
FORMULAS = (
    "=1+1", "=cmd|' /C calc'!A0", '=HYPERLINK("http://x","click")', "+1+1", "-1+1", "@SUM(1)", "\t=1+1", "\r=1+1",
    "\n=1+1", " =1+1", "\u00a0=1+1", "\u200b=1+1", "=", "-", "'=1+1", '"=1+1"', "=1,2", "a,b", "a;b", 'a"b', "a\nb",
    "a\r\nb", "NaN", "NA", "", "None", "1e5", "007", "TRUE",
)  # fmt: skip
"""Cells of a CSV file that a spreadsheet could evaluate or a reader could misread."""
OTHERS = (
    "]]>", "<!--", "-->", "<![CDATA[", "<svg onload=alert(1)>", "javascript:alert(1)", "<a href='javascript:1'>x</a>",
    "<style>*{display:none}</style>", "</bdi></title></textarea></style>", "<base href=//x>",
    "<meta http-equiv=refresh>", "&#60;script&#62;", "\\u003cscript\\u003e", "';alert(1);//", "${7*7}", "#{7*7}",
    "<%= 7*7 %>", "[link=http://x]a[/link]", "[/]", "[bold", "\\[red]", "\x1b]8;;http://x\x07a\x1b]8;;\x07", "\x1b[6n",
    "\x1bP+q544e\x1b\\", "\x9b2J", "\x08" * 50, "\r" * 50, "\x0c", "\x0b", "\ufff9\ufffb", "\u2029", "\U000e0041",
    "\u0430dmin", "ﷺ" * 300, "a\u0300" * 500, "العربية", "Z\u0351\u036b\u0343", "x" * 256, "é" * 200,
    "\U0001f468\u200d\U0001f469" * 100, "a/../../../../etc/passwd", "C:\\Windows\\x", "CON", "NUL.txt",
    "'; DROP TABLE trials; --", "1; ATTACH 'x'", "%00", "%0d%0aSet-Cookie:x", "{{constructor.constructor('x')()}}",
)  # fmt: skip


def is_encodable(name: str) -> bool:
    """No lone surrogate: neither TOML nor JSON can hold one."""
    return name.encode("utf-8", "replace").decode() == name


NAMES = tuple(sorted({n for n in (*COMMENTS, *MARKUP, *PATHS, *FORMULAS, *OTHERS) if is_encodable(n)}))
"""All of these that a file can hold."""
