"""The template of the report's page, read as text."""

import re
from pathlib import Path

from enma_fast.figures.report import page as report_page


def test_a_table_that_goes_on_sideways_shows_a_shadow() -> None:
    template = Path(report_page.__file__).with_suffix(".html").read_text()
    (rule,) = re.findall(r"^\.scroll \{(.*?)\}", template, re.DOTALL | re.MULTILINE)
    assert rule.count("var(--edge)") == rule.count("no-repeat local") == rule.count("no-repeat scroll") == 2
    assert template.count("--edge:") == 2, "one for light, one for dark"
