"""A verdict in words: for the terminal, for a pull request in GitHub's Markdown, for a CI system in JUnit's XML.

Names of classes and models come from users' files and servers, so each form escapes what means something in it.
"""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Sequence
from xml.etree import ElementTree

from temper.report import text
from temper.report.table import text_table
from temper.report.verdict import Answer, Finding, Side, Verdict

COLUMNS = ("answer", "what", "figure", "interval", "limit", "images", "what decided")
SYMBOLS: dict[Answer, str] = {
    "SHIP": "\N{WHITE HEAVY CHECK MARK}",
    "HOLD": "\N{NO ENTRY}",
    "NOT ENOUGH DATA": "\N{WHITE QUESTION MARK ORNAMENT}",
}
_NONE = "\N{EN DASH}"
# What GitHub's Markdown takes for markup, and what it makes a link or a mention of.
_MARKUP = re.compile(r"[\\`*_{}\[\]<>|~!&$\"']")
_LINKS = re.compile(r"[@#]|://|(?<=www)\.", re.IGNORECASE)
# XML 1.0 has no word for them, not even an escape.
_NO_XML = re.compile("[^\t\n\r\u0020-\ud7ff\ue000-\ufffd\U00010000-\U0010ffff]")
# Control characters, marks of direction, halves of a character, separators of lines.
_ODD = ("Cc", "Cf", "Cs", "Zl", "Zp")


def short(verdict: Verdict) -> str:
    """The answer and the model, as `SHIP digits_int8`."""
    return f"{verdict.answer} {verdict.candidate.model}"


def headline(verdict: Verdict) -> str:
    """The answer, what it is on, and what decided, in one sentence."""
    sides = f"{_side(verdict.candidate)} against {_side(verdict.reference)}"
    return f"{verdict.answer} {sides}: {_summary(verdict)}"


def _side(side: Side) -> str:
    return side.model if side.version is None else f"{side.model} version {side.version}"


def _summary(verdict: Verdict) -> str:
    deciding = [one for one in verdict.findings if one.answer == verdict.answer]
    if verdict.answer == "SHIP":
        return "the limit is kept" if len(deciding) == 1 else f"all {len(deciding)} limits are kept"
    said = "; ".join(f"{one.name} {_against_limit(one)}" for one in deciding)
    needed = [one.needed for one in deciding if one.needed is not None]
    if verdict.answer == "NOT ENOUGH DATA" and len(needed) == len(deciding) > 0:
        return f"{max(needed):,} test images would decide ({said})"
    return said or "no rule decided"


def _against_limit(finding: Finding) -> str:
    if finding.figure is None:
        return "was not measured"
    figure, limit = (with_unit(value, finding.unit) for value in (finding.figure, finding.limit))
    return f"{figure}, limit {limit}"


def with_unit(value: float, unit: str) -> str:
    """A figure as its rule counts, `−0.25 points`, `1.52×`, `14.2 ms`, `0.0123`."""
    if unit == "x":
        return text.times(value)
    number = f"{value:.4g}" if unit in ("", "ms") else f"{value:.2f}"
    if float(number) == 0:
        number = number.removeprefix("-")
    return " ".join(filter(None, (number.replace("-", text.MINUS, 1), unit)))


def cells(verdict: Verdict) -> list[list[str]]:
    """One row of text per finding, in the order of `COLUMNS`; a dash for what there is not."""
    return [
        [
            one.answer,
            one.name,
            _NONE if one.figure is None else with_unit(one.figure, one.unit),
            _interval(one),
            with_unit(one.limit, one.unit),
            _NONE if one.num_images is None else f"{one.num_images:,}",
            one.reason,
        ]
        for one in verdict.findings
    ]


def _interval(finding: Finding) -> str:
    if finding.low is None and finding.high is None:
        return _NONE
    ends = [_NONE if end is None else with_unit(end, finding.unit) for end in (finding.low, finding.high)]
    # The unit once.
    return f"{ends[0].removesuffix(f' {finding.unit}')} to {ends[1]}"


def facts(verdict: Verdict) -> list[str]:
    """What else a reader of a verdict must know, in sentences."""
    commit = verdict.commit[:12] if verdict.commit else "of no checkout"
    return [
        f"Measured on {verdict.num_images:,} test images through {verdict.server}, {verdict.machine}, "
        f"{verdict.created}.",
        *_accuracies(verdict),
        f"Confidence {100 * verdict.confidence:g} %, one-sided: {verdict.correction}",
        *_looks(verdict),
        f"Engine SHA-256 {verdict.candidate.engine_sha256 or 'not known'}, data SHA-256 "
        f"{verdict.data_sha256 or 'not known'}, Temper {commit}.",
        f"Signed by the key {verdict.signature.key}." if verdict.signature else "Not signed.",
    ]


def _accuracies(verdict: Verdict) -> list[str]:
    mine, theirs = verdict.candidate.accuracy, verdict.reference.accuracy
    if mine is None or theirs is None:
        return []
    return [f"It is right for {text.percent(mine)} of them, the reference for {text.percent(theirs)}."]


def _looks(verdict: Verdict) -> list[str]:
    """What several looks at one version do to the error."""
    if verdict.looks == 1:
        return []
    error, together = 1 - verdict.confidence, min(1.0, verdict.looks * (1 - verdict.confidence))
    return [
        f"Look {verdict.looks} at this version on other images: each ships what breaks a limit in up to "
        f"{100 * error:.3g} % of cases, all together in up to {100 * together:.3g} %; it stays {100 * error:.3g} "
        f"with `confidence = {1 - error / verdict.looks:.4g}` in each."
    ]


def render_text(verdicts: Sequence[Verdict]) -> str:
    """The verdicts for a terminal, each as a sentence, a table, and the reasons under it.

    What acts on a terminal is escaped in the table alone; `temper.terminal.echo` does the rest.
    """
    parts = []
    for verdict in verdicts:
        *head, _ = COLUMNS
        table = text_table(head, [row[:-1] for row in cells(verdict)], left=(0, 1)) if verdict.findings else ""
        reasons = "".join(
            _one_line(f"{one.name}: {one.reason}") + "\n" for one in verdict.findings if one.answer != "SHIP"
        )
        reasons += "".join(f"{line}\n" for line in _looks(verdict))
        parts.append(f"{_one_line(headline(verdict))}\n\n{table}\n{reasons}".rstrip("\n") + "\n")
    return "\n".join(parts)


def render_markdown(verdicts: Sequence[Verdict]) -> str:
    """The verdicts in GitHub-flavoured Markdown, for a pull request's comment or `$GITHUB_STEP_SUMMARY`."""
    parts = []
    for verdict in verdicts:
        lines = [f"### {SYMBOLS[verdict.answer]} {_markdown(headline(verdict))}", ""]
        if verdict.findings:
            lines += [_row(COLUMNS), "| :-- | :-- | --: | --: | --: | --: | :-- |"]
            for answer, *others in cells(verdict):
                lines.append(_row([f"{SYMBOLS[_as_answer(answer)]} {answer}", *map(_markdown, others)]))
            lines.append("")
        lines += ["<details><summary>How it was judged</summary>", ""]
        lines += [f"- {_markdown(fact)}" for fact in facts(verdict)]
        lines += ["", "</details>"]
        parts.append("\n".join(lines) + "\n")
    return "\n".join(parts)


def render_junit(verdicts: Sequence[Verdict]) -> str:
    """The verdicts as JUnit's XML: a suite each, and in it a case for each finding.

    HOLD is a failure. NOT ENOUGH DATA is an error, not a case that was skipped: CI systems show those as green,
    and what cannot be judged must not be shipped either.
    """
    root = ElementTree.Element("testsuites", name="temper gate")
    for verdict in verdicts:
        side = verdict.candidate
        suite = ElementTree.SubElement(
            root,
            "testsuite",
            name=_xml(f"temper gate: {_side(side)}"),
            timestamp=_xml(verdict.created.removesuffix("Z")),
        )
        cases = [(one.name, one.answer, one.reason, _shown(one)) for one in verdict.findings]
        if verdict.answer not in [answer for _, answer, _, _ in cases]:
            cases.insert(0, ("verdict", verdict.answer, headline(verdict), ""))
        for name, answer, reason, shown in cases:
            case = ElementTree.SubElement(suite, "testcase", classname=_xml(side.model), name=_xml(name), time="0")
            if answer != "SHIP":
                kind = "failure" if answer == "HOLD" else "error"
                found = ElementTree.SubElement(case, kind, type=answer, message=_xml(_one_line(reason)))
                found.text = _xml("\n".join(filter(None, (reason, shown))))
            ElementTree.SubElement(case, "system-out").text = _xml(shown)
        answers = [answer for _, answer, _, _ in cases]
        suite.set("tests", str(len(cases)))
        suite.set("failures", str(answers.count("HOLD")))
        suite.set("errors", str(answers.count("NOT ENOUGH DATA")))
        suite.set("skipped", "0")
        suite.set("time", "0")
    ElementTree.indent(root)
    return '<?xml version="1.0" encoding="UTF-8"?>\n' + ElementTree.tostring(root, encoding="unicode") + "\n"


def _shown(finding: Finding) -> str:
    return f"{_against_limit(finding)}, interval {_interval(finding)}"


def _as_answer(word: str) -> Answer:
    (answer,) = (one for one in SYMBOLS if one == word)
    return answer


def _row(values: Sequence[str]) -> str:
    return f"| {' | '.join(values)} |"


def _one_line(value: str) -> str:
    plain = "".join(" " if unicodedata.category(char) in _ODD else char for char in value)
    return " ".join(plain.split())


def _markdown(value: str) -> str:
    """Text that is nothing but text there: markup as entities, and no mention, reference or link of its own."""
    # A word joiner, which nobody sees, parts what GitHub would make a link of.
    parted = _LINKS.sub(lambda match: match[0][0] + "\N{WORD JOINER}" + match[0][1:], _one_line(value))
    return _MARKUP.sub(lambda match: f"&#{ord(match[0])};", parted)


def _xml(value: str) -> str:
    return _NO_XML.sub("\N{REPLACEMENT CHARACTER}", value)
