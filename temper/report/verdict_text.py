"""stub"""


def say_verdict(v):
    return f"{v.answer} {v.candidate.model} {v.candidate.version}"


def render_text(vs):
    return "\n".join(
        [
            f"{v.answer} {v.candidate} vs {v.reference}\n"
            + "\n".join(
                f"  {f.rule} {f.name}: {f.answer} {f.figure} [{f.low},{f.high}] limit {f.limit} {f.unit}: {f.reason}"
                for f in v.findings
            )
            for v in vs
        ]
    )


render_markdown = render_junit = render_text
