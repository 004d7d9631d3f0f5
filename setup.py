"""The description on a package index: README.md without links into the repository, which lead nowhere from there."""

import pathlib
import re

from setuptools import setup

_RELATIVE = r"\((?!https?://|#)[^)\s]+\)"


def described(readme: str) -> str:
    """Returns a README with the text of each relative link in its place; pictures and lines of one link go."""
    readme = re.sub(r"^<picture>.*?</picture>\n\n?", "", readme, flags=re.MULTILINE | re.DOTALL)
    readme = re.sub(rf"^!?\[[^\]]*\]{_RELATIVE}\n\n?", "", readme, flags=re.MULTILINE)
    return re.sub(rf"\[([^\]]+)\]{_RELATIVE}", r"\1", readme)


if __name__ == "__main__":
    text = (pathlib.Path(__file__).parent / "README.md").read_text(encoding="utf-8")
    setup(long_description=described(text), long_description_content_type="text/markdown")
