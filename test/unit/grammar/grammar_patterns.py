"""Patterns to test with: such as people send, and a hypothesis strategy that writes new ones."""

import re

from hypothesis import strategies as st

CHARACTER = (
    r"""\{\n"""
    r"""    "name": "[\w\d\s]{1,16}",\n"""
    r"""    "house": "(Gryffindor|Slytherin|Ravenclaw|Hufflepuff)",\n"""
    r"""    "blood status": "(Pure-blood|Half-blood|Muggle-born)",\n"""
    r"""    "occupation": "(student|teacher|auror|ministry of magic|death eater|order of the phoenix)",\n"""
    r"""    "wand": \{\n"""
    r"""        "wood": "[\w\d\s]{1,16}",\n"""
    r"""        "core": "[\w\d\s]{1,16}",\n"""
    r"""        "length": [0-9]{1,2}\.[0-9]{0,2}\n"""
    r"""    \},\n"""
    r"""    "alive": "(Alive|Deceased)",\n"""
    r"""    "patronus": "[\w\d\s]{1,16}",\n"""
    r"""    "bogart": "[\w\d\s]{1,16}"\n"""
    r"""\}"""
)

_PLAIN = r"""
[-+]?[0-9]+
[-+]?[0-9]*\.?[0-9]+
(True|False)
"[\w\d\s]*"
((25[0-5]|2[0-4]\d|[01]?\d\d?).){3}(25[0-5]|2[0-4]\d|[01]?\d\d?)
^(?:(?:25[0-5]|2[0-4]\d|1\d\d|[1-9]?\d)\.){3}(?:25[0-5]|2[0-4]\d|1\d\d|[1-9]?\d)$
[a-zA-Z0-9._%+-]+@[a-zA-Z0-9.-]+\.[a-zA-Z]{2,}
^[^@\s]+@[^@\s]+\.[^@\s]+$
https?://[^\s/$.?#].[^\s]*
(https?|ftp)://(-\.)?([^\s/?\.#-]+\.?)+(/[^\s]*)?
\d{4}-\d{2}-\d{2}
(0[1-9]|1[0-2])/(0[1-9]|[12]\d|3[01])/(19|20)\d\d
([01]\d|2[0-3]):[0-5]\d(:[0-5]\d)?
\d{4}-\d{2}-\d{2}T\d{2}:\d{2}:\d{2}(\.\d+)?(Z|[+-]\d{2}:\d{2})
(Jan|Feb|Mar|Apr|May|Jun|Jul|Aug|Sep|Oct|Nov|Dec) \d{1,2}, \d{4}
(Mon|Tues|Wednes|Thurs|Fri|Satur|Sun)day
[0-9a-f]{8}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{12}
[0-9A-Fa-f]{2}(:[0-9A-Fa-f]{2}){5}
#[0-9a-fA-F]{6}|#[0-9a-fA-F]{3}
rgb\((\d{1,3}, ?){2}\d{1,3}\)
\(?\d{3}\)?[-. ]?\d{3}[-. ]?\d{4}
\+\d{1,3} \d{4,14}
[A-Z]{2}\d{6}[A-Z]?
\d{5}(-\d{4})?
[A-Z]{1,2}\d[A-Z\d]? ?\d[A-Z]{2}
\d{3}-\d{2}-\d{4}
(4\d{3}|5[1-5]\d{2})( \d{4}){3}
[A-Z]{2}\d{2}[A-Z0-9]{11,30}
\$?\d{1,3}(,\d{3})*(\.\d{2})?
-?(0|[1-9]\d*)(\.\d+)?([eE][+-]?\d+)?
0x[0-9a-fA-F]+
0b[01]+
[1-9][0-9]?|100
(100|[1-9]?\d)%
M{0,3}(CM|CD|D?C{0,3})(XC|XL|L?X{0,3})(IX|IV|V?I{0,3})
yes|no|maybe
(yes|no|maybe)\.
[Yy](es)?|[Nn]o?
(?i)yes|no
(?i:true|false)
positive|negative|neutral
[ABCD]
\([A-D]\)
Answer: [A-E]
The answer is \(?[A-J]\)?\.
[1-5](\.[05])?
[1-9]|10
Score: ([0-9]|10)/10
Rating: \*{1,5}
[a-z]+
[A-Z][a-z]+
[A-Z][a-z]+( [A-Z][a-z]+){0,3}
[A-Z][a-zA-Z'-]{1,30}
[a-z_][a-z0-9_]*
[A-Za-z_$][\w$]*
([A-Z][a-z0-9]+)+
[a-z]+(-[a-z]+)*
[a-z0-9]+(?:-[a-z0-9]+)*
[A-Z_]+=[^\n]*
--[a-z][a-z-]*(=\S+)?
(/[a-zA-Z0-9._-]+)+/?
[a-zA-Z]:\\(?:[^\\/:*?"<>|\r\n]+\\)*[^\\/:*?"<>|\r\n]*
[\w,\s-]+\.[A-Za-z]{3}
v?\d+\.\d+\.\d+(-[0-9A-Za-z.-]+)?(\+[0-9A-Za-z.-]+)?
[0-9a-f]{7,40}
[A-Za-z0-9+/]{4,40}={0,2}
([A-Za-z0-9+/]{4})*([A-Za-z0-9+/]{2}==|[A-Za-z0-9+/]{3}=)?
eyJ[\w-]+\.eyJ[\w-]+\.[\w-]+
\w+
\w+ \w+
\w+\s\w+
\w{1,20}
\W
\W{1,3}
\d+
\D+
\s*\S+\s*
\S+
.
.+
.*
.{1,100}
.{0,20}\n
[^\n]+
[^\n]*\n
(.|\n)*
[\s\S]{1,50}
[\w\W]{0,10}
[^"]*
"[^"]*"
"([^"\\]|\\.)*"
'(?:[^'\\]|\\.)*'
"(?:[^"\\\x00-\x1F\x7F-\x9F]|\\["\\])*"
"(?:[^"\\\x00-\x1f]|\\(?:["\\/bfnrt]|u[0-9a-fA-F]{4}))*"
`[^`]+`
\*\*[^*]+\*\*
\[[^\]]*\]\([^)]*\)
#{1,6} [^\n]+
- [^\n]+(\n- [^\n]+)*
(- [^\n]{1,40}\n){3}
(\d+\. [^\n]+\n){1,5}
\|( [^|\n]+ \|)+
```python\n[^`]*```
```(json)?\n\{[^`]*\}\n```
<[a-z]+>[^<]*</[a-z]+>
<([a-z]+)( [a-z]+="[^"]*")*/?>
<b>.*?</b>
<!--.*?-->
<tool_call>\n\{"name": "(get_weather|search)", "arguments": \{"q": "[^"]{1,50}"\}\}\n</tool_call>
<function=(add|sub)>\{"a": -?\d+, "b": -?\d+\}</function>
<think>\n[^<]{1,200}\n</think>\n\n[^<]+
Thought: [^\n]+\nAction: (Search|Lookup|Finish)\[[^\]\n]+\]
(Thought|Action|Observation): .*
Question: .{1,50}\?\nAnswer: .{1,50}\.
User: .*\nAssistant: .*
SELECT [\w, *]+ FROM \w+( WHERE \w+ (=|<|>) ('[^']*'|\d+))?;
INSERT INTO \w+ \((\w+)(, \w+)*\) VALUES \(('[^']*'|\d+)(, ('[^']*'|\d+))*\);
def [a-z_]+\(([a-z]+(, [a-z]+)*)?\):\n    return .+
(let|const|var) \w+ = [^;]+;
if \w+ (==|!=|<=|>=|<|>) \w+:
import [a-z_]+(\.[a-z_]+)*( as [a-z]+)?
from \w+ import \w+(, \w+)*
\w+\((\w+(=\w+)?(, \w+(=\w+)?)*)?\)
(public|private|protected)?( static)? \w+ \w+\(\)
@[a-z]+(\.[a-z]+)*
[a-z]+\[\d+\]
\[\]|\[\d+(, \d+)*\]
\[(\d+(\.\d+)?(, )?){1,4}\]
\{\}|\{"\w+": \d+(, "\w+": \d+)*\}
\{"answer": "(yes|no)"\}
\{"name": "[^"]{1,30}", "age": \d{1,3}\}
\{[ ]?"a"[ ]?:[ ]?(0|[1-9][0-9]*)[ ]?\}
\{\s*"x"\s*:\s*-?\d+\s*,\s*"y"\s*:\s*-?\d+\s*\}
\{ "id": \d+, "tags": \[("[a-z]+"(, "[a-z]+")*)?\] \}
\{\n  "title": "[^"\n]{5,40}",\n  "year": (19|20)\d\d\n\}
(null|true|false|-?\d+|"[^"]*")
("[^"]*"|[^,"\n]*)(,("[^"]*"|[^,"\n]*))*
[^,\n]+(,[^,\n]+){2}
(\w+=\w+)(&\w+=\w+)*
(\w+: [^\n]+\n)+
\[(INFO|WARN|ERROR)\] \d{2}:\d{2}:\d{2} - .+
(GET|POST|PUT|DELETE) /[\w/]* HTTP/1\.[01]
\d{1,3}(\.\d{1,3}){3} - - \[[^\]]+\] "[^"]*" \d{3} \d+
[1-5]\d\d
(north|south)?(east|west)?
(un|re)?(do|make)(ing|able)?
colou?r
gr[ae]y
(a|b)*abb
(ab|ba)+
a{3}
a{2,}
a{2,4}b{0,3}
(a{1,3}b){1,3}
(abc){0,5}
(?:(?:a)?b)*c
(a|aa)+
(a?){10}b
x*y*z*
(x+x+)+y
(.*)(\d+)(.*)
a.*b.*c
[ab]*a[ab]{5}
(?:)
()
a|
|a
(|a|bc)
[abc-]
[-abc]
[]a]
[^]a]
[a\]b]
[\^a]
[a^]
[\d\-x]
[\w.+-]+
[.]
[*+?]
[!-~]
[ -~]{1,20}
[^ -~]
[^a-z]
[^\d]
[^\w\s]
[^\W\d]
[^\s]+
\.\*\+\?\(\)\[\]\{\}\^\$\|\\
\/\-\'\"
\t\n\r\f\v
\x41\x5a
\u00e9t\u00e9
\u4e2d\u6587
caf[eé]
[à-ÿ]+
[α-ω]{1,10}
[А-Яа-я]+
[一-龥]{1,8}
[ぁ-んァ-ン]+
日本(語|人)?
[😀-😎]
👍|👎
(🎉){1,3}
naïve|naive
[é😀中a]{1,4}
ß|ẞ|ss
[^\x00-\x7f]+
[\u0080-\uffff]
(?s).
(?s).{3}
(?s:.)(?-s:.)
(?i)select \* from [a-z]+
(?i)[a-f0-9]{4}
(?i:abc)def
(?x) a b c # comment
(?x:a b)\ c
(?m)^line$
(?a)\w\W
(?P<year>\d{4})-(?P<month>\d\d)
(?:(?P<a>x)|(?P<b>y))z
a*?b+?c??
a{1,3}?b
\Aabc\Z
^abc$
^(abc|def)$
(^abc|^def)x
x(abc$|def$)
^$
(^|a)b
[+-]?(\d+(\.\d*)?|\.\d+)
\d+ [+*/-] \d+ = \d+
([a-h][1-8]){2}[qrbn]?
(O-O(-O)?|[KQRBN]?[a-h]?[1-8]?x?[a-h][1-8](=[QRBN])?[+#]?)
[ACGT]{3,12}
([ACGT]{3})+
[A-Z]{3}\d{3,4}
[A-HJ-NPR-Z0-9]{17}
(\d{3}-?){2}\d{3,4}
(?:0|1(?:01*0)*1)+
(https?://)?(www\.)?[a-z0-9-]{1,20}\.(com|org|net|io)
(?:[a-z0-9](?:[a-z0-9-]{0,61}[a-z0-9])?\.)+[a-z]{2,6}
[A-Z][^.!?]{10,60}[.!?]
([A-Z][a-z]+ ){2,4}is (happy|sad)\.
(?:\w+ ){3,6}\w+\.
\s+
[ \t]+
( {4})*pass
(\t| {2})+x
[^\S\n]+
\u2028|\u00a0
(one|two|three)(, (one|two|three)){0,4}
(first|second) and (first|second)
Dear (Mr|Mrs|Ms)\. [A-Z][a-z]+,
(Gryffindor|Slytherin|Ravenclaw|Hufflepuff)
ministry of magic|death eater|order of the phoenix
"(student|teacher)": \[("[a-z ]+",? ?)*\]
(?=.*[A-Z])(?=.*\d)[A-Za-z\d]{8,20}
(?!-)[a-z0-9-]{1,63}(?<!-)
(?!-)[a-z0-9-]{1,20}(?<!-)(\.(?!con)[a-z]{2,6})
(?!^[-+.]*$)[+-]?0*\d*\.?\d*
(?!^[-+.]*$)[+-]?0*(?:\d{0,3}|(?=[\d.]{1,6}0*$)\d{0,3}\.\d{0,2}0*$)
(?!(con|prn|aux|nul)$)\w{1,12}
(?!.*--)[a-z][a-z-]{0,30}(?<!-)
(?i)(?!admin|root)[a-z_]{3,16}
"""

REAL = [CHARACTER, *_PLAIN.strip("\n").splitlines()]
# The same things as they stand in larger texts.
REAL += [
    r'\{"value": "' + p + r'"\}'
    for p in REAL
    if '"' not in p and not re.search(r"^\(\?[ixsma]+\)|\^|\$|\\[AZ]|\.\*|\\W|\[\^|\\D|\\S|\(\?[=!<]", p)
]

_ALPHABET = "abcAB01_ -.\n\"\\éß中😀Kk{}'"
_CLASSES = [r"\w", r"\d", r"\s", r"\W", r"\D", r"\S"]


def _set(parts: tuple[bool, list[str]]) -> str:
    negated, items = parts
    return f"[{'^' if negated else ''}{''.join(items)}]"


_letters = st.sampled_from(_ALPHABET)
_spans = st.tuples(_letters, _letters).map(lambda p: "-".join(re.escape(c) for c in sorted(p)))
_sets = st.tuples(
    st.booleans(),
    st.lists(st.one_of(_letters.map(re.escape), _spans, st.sampled_from(_CLASSES)), min_size=1, max_size=3),
).map(_set)
_leaves = st.one_of(_letters.map(re.escape), _sets, st.just("."), st.sampled_from(_CLASSES))
_REPEATS = ["*", "+", "?", "{2}", "{1,3}", "{0,2}", "{2,}", "*?", "+?", "??", "{0}"]


def _larger(inner: st.SearchStrategy[str]) -> st.SearchStrategy[str]:
    return st.one_of(
        st.lists(inner, min_size=1, max_size=4).map("".join),
        st.tuples(st.sampled_from(["", "?:", "?s:", "?a:"]), st.lists(inner, min_size=1, max_size=3)).map(
            lambda p: f"({p[0]}{'|'.join(p[1])})"
        ),
        st.tuples(inner, st.sampled_from(_REPEATS)).map(lambda p: f"(?:{p[0]}){p[1]}"),
    )


patterns = st.recursive(_leaves, _larger, max_leaves=12)
_AROUND = ["(?={})", "(?!{})", "(?=.*{})", "(?!.*{})", "(?!(?!{}))", "(?!(?i:{}))"]
looking = st.tuples(
    st.lists(st.tuples(st.sampled_from(_AROUND), patterns).map(lambda p: p[0].format(p[1])), min_size=1, max_size=2),
    patterns,
    st.sampled_from(["", "(?<={})", "(?<!{})"]),
    _leaves,
).map(lambda p: "".join(p[0]) + p[1] + p[2].format(p[3]))
texts = st.text(_ALPHABET, max_size=8)
