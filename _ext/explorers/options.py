"""Choices of a form."""

from html import escape


def options(labels: dict[str, str], chosen: str) -> str:
    """Return the options of a select element: value and label, one of them chosen."""
    return "".join(
        f'<option value="{value}"{" selected" * (value == chosen)}>{escape(label)}</option>'
        for value, label in labels.items()
    )
