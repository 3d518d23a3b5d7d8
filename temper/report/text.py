"""How numbers are written, on the terminal and in the page alike."""

MINUS = "\N{MINUS SIGN}"


def percent(share: float) -> str:
    """A share of 1 as `98.2 %`."""
    return f"{100 * share:.1f} %"


def whole_percent(share: float) -> str:
    """A share of 1 as `98 %`; it may be below 0."""
    return f"{plain(100 * share, 0)} %"


def fine_percent(share: float) -> str:
    """A small share of 1 as `0.04 %`; what is not nothing never looks so."""
    return "<0.01 %" if 0 < share < 0.00005 else f"{100 * share:.2f} %"


def plain(value: float, digits: int = 2) -> str:
    """A figure that may be below 0, `0.98` or `−0.01`; what rounds to zero has no sign."""
    return signed(value, digits).removeprefix("+")


def interval(low: float, high: float) -> str:
    """An interval of shares of 1 as `97.0-98.9`, in percent."""
    return f"{100 * low:.1f}\N{EN DASH}{100 * high:.1f}"


def signed(value: float, digits: int = 1) -> str:
    """A difference with its sign, `+0.4` or `−0.9`; what rounds to zero has none."""
    text = f"{abs(value):.{digits}f}"
    if float(text) == 0:
        return text
    return ("+" if value > 0 else MINUS) + text


def points(difference: float, low: float, high: float) -> str:
    """A difference of shares of 1 in percentage points, with its 95 % interval."""
    return f"{signed(100 * difference)} points (95 % interval {bounds(low, high)})"


def bounds(low: float, high: float) -> str:
    """The interval of a difference of shares of 1, `−1.2 to +0.3`, in percentage points."""
    return f"{signed(100 * low)} to {signed(100 * high)}"


def times(ratio: float) -> str:
    """A ratio as `3.1×`."""
    return f"{ratio:.2f}\N{MULTIPLICATION SIGN}" if ratio < 10 else f"{ratio:.0f}\N{MULTIPLICATION SIGN}"


def number(value: float) -> str:
    """A positive quantity with three figures and thousands separators: `1,234`, `83.1`, `0.52`."""
    if value >= 100:
        return f"{value:,.0f}"
    return f"{value:.1f}" if value >= 10 else f"{value:.2f}"


def size(num_bytes: float) -> str:
    """A file's size in MB (10^6 bytes)."""
    return f"{num_bytes / 1e6:.1f} MB"


def seconds(value: float) -> str:
    """A duration: `0.4 s`, `62 s`, `12 min`."""
    if value >= 600:
        return f"{value / 60:.0f} min"
    return f"{value:.0f} s" if value >= 10 else f"{value:.1f} s"


def probability(value: float) -> str:
    """A p value: `p = 0.03`, `p < 0.001`."""
    return "p < 0.001" if value < 0.001 else f"p = {value:.2g}"


def norm(name: str) -> str:
    """The norm of a budget: `L∞` or `L2`."""
    return {"linf": "L\N{INFINITY}", "l2": "L2"}.get(name, name)


def budget(norm_name: str, epsilon: float) -> str:
    """An attack's budget: `L∞ 24/255`, `L2 512/255`."""
    return f"{norm(norm_name)} {epsilon:g}/255"
