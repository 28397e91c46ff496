"""What mkdocs calls: pages outside docs/ join the site, and links to them lead there."""

import re
from pathlib import Path
from typing import Any

from mkdocs.structure.files import File, Files

ROOT = Path(__file__).parents[2]
# The pages, and the figures and result files that they link to.
OUTSIDE = (
    *("ARCHITECTURE.md", "CHANGELOG.md", "CONTRIBUTING.md"),
    *("benchmarks/*.md", "benchmarks/*.svg", "benchmarks/results/**/*.json*"),
)


def on_config(config: Any) -> Any:
    """List the benchmark pages in the navigation, in the order of their names."""
    pages = [f"benchmarks/{page.name}" for page in sorted((ROOT / "benchmarks").glob("*.md"))]
    for entry in config.nav:
        if "Measurements" in entry:
            entry["Measurements"] = pages
    return config


def on_files(files: Files, config: Any) -> Files:
    """Add what is outside docs/."""
    for path in sorted(path for pattern in OUTSIDE for path in ROOT.glob(pattern)):
        uri = path.relative_to(ROOT).as_posix()
        files.append(File.generated(config, uri, abs_src_path=str(path)))
    return files


def on_page_markdown(markdown: str, **_: Any) -> str:
    """In the site, pages outside docs/ stand beside the others."""
    markdown = re.sub(r"\]\(\.\./(benchmarks/|[A-Z]+\.md)", r"](\1", markdown)
    return markdown.replace("](../docs/", "](../").replace("](docs/", "](")
