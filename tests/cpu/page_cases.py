"""What every HTML report has to be, and the problem that the command line's tests make one of."""

from __future__ import annotations

import re
import xml.etree.ElementTree as ET
from pathlib import Path

ROOT = Path(__file__).parents[2]
H200 = ROOT / "benchmarks" / "results" / "nvidia-h200" / "rms_norm.json"
TINY = ("rms_norm", "--shape", "x=4x64", "--shape", "weight=64", "--device", "cpu")


def checked(page):
    """The page as a tree, after what every page has to be: well-formed, one file, ids unique."""
    assert page.startswith("<!DOCTYPE html>\n")
    tree = ET.fromstring(page.removeprefix("<!DOCTYPE html>\n"))
    assert "http" not in re.sub(r">[^<]*<", "><", page)  # in text, but in no tag
    assert "@import" not in page
    assert not [one for one in tree.iter() if one.get("src") or one.tag in ("link", "iframe")]
    assert all(link.startswith("#") for one in tree.iter() if (link := one.get("href")))
    assert not re.findall(r"url\((?!#)", page)
    ids = [one.get("id") for one in tree.iter() if one.get("id")]
    assert len(ids) == len(set(ids))
    targets = re.findall(r'url\(#([^)]*)\)|href="#([^"]*)"', page)
    assert {a or b for a, b in targets} <= set(ids)
    assert not re.findall(r"#0101[0-9a-f]{2}", page)  # every stand-in colour became the page's
    variables = set(re.findall(r"var\(--([\w-]+)\)", page))
    assert variables <= set(re.findall(r"--([\w-]+):", page))
    return tree
