"""The page docs/python.md: its examples, and the notebook made of its last section.

`python tests/tutorial.py` runs the examples, and writes what they print into the page, and the notebook. It needs torch.
"""

import contextlib
import io
import json
import re
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
PAGE = ROOT / "docs" / "python.md"
NOTEBOOK = ROOT / "python" / "tutorial.ipynb"

#: An example, and what it prints.
EXAMPLE = re.compile(r"```python\n(?P<code>.*?)```\n(?:\n```text\n(?P<output>.*?)```\n)?", re.DOTALL)


def parts():
    """The manual and the tutorial."""
    page = PAGE.read_text(encoding="utf-8")
    start = page.index("## Find a fault")
    return page[:start], page[start:]


def executed(text):
    """The text, with what its examples print, and the namespaces after each of them."""
    namespace, namespaces = {}, []

    def run(example):
        printed = io.StringIO()
        with contextlib.redirect_stdout(printed):
            exec(compile(example["code"], f"example {len(namespaces)}", "exec"), namespace)
        namespaces.append(dict(namespace))
        shown = f"\n```text\n{printed.getvalue()}```\n" if printed.getvalue() else ""
        return f"```python\n{example['code']}```\n{shown}"

    return EXAMPLE.sub(run, text), namespaces


def notebook(tutorial):
    """The tutorial as a notebook: its prose and its examples are the cells, with the outputs of the page."""
    cells, at = [], 0

    def cell(kind, text, **fields):
        source = text.strip("\n").splitlines(keepends=True)
        if source:
            cells.append({"id": f"cell-{len(cells)}", "cell_type": kind, "metadata": {}, "source": source, **fields})

    def prose(text):
        cell("markdown", re.sub(r"\$`(.*?)`\$", r"$\1$", text))  # notebooks have no backticks in formulas

    for example in EXAMPLE.finditer(tutorial):
        prose(tutorial[at : example.start()])
        lines = (example["output"] or "").splitlines(keepends=True)
        outputs = [{"output_type": "stream", "name": "stdout", "text": lines}] if lines else []
        cell("code", example["code"], execution_count=None, outputs=outputs)
        at = example.end()
    prose(tutorial[at:])
    kernel = {"display_name": "Python 3", "language": "python", "name": "python3"}
    metadata = {"kernelspec": kernel, "language_info": {"name": "python"}}
    return {"cells": cells, "metadata": metadata, "nbformat": 4, "nbformat_minor": 5}


if __name__ == "__main__":
    manual, tutorial = (executed(part)[0] for part in parts())
    PAGE.write_text(manual + tutorial, encoding="utf-8")
    written = json.dumps(notebook(tutorial), indent=1, ensure_ascii=False)
    NOTEBOOK.write_text(written + "\n", encoding="utf-8")
