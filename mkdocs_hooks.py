"""What mkdocs does beside: the pages' sources stand beside the built pages, where llms.txt links to them."""

import shutil
from pathlib import Path
from typing import Any


def on_post_build(config: Any) -> None:
    for page in Path(config["docs_dir"]).rglob("*.md"):
        copy = Path(config["site_dir"]) / page.relative_to(config["docs_dir"])
        copy.parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(page, copy)
