"""How long the pages take: seconds to draw report.html of results, and how large it is.

    dgad attack --model student.onnx --suite fast --limit 1000 --output new
    python benchmarks/report.py new

The first drawing loads the templates, as `dgad attack` does once; the median is of those after it.
"""

import argparse
import statistics
import tempfile
import time
from pathlib import Path

from dgad_tk.artifacts.machine import processor
from evaluators.report.evaluation.page import write_report
from evaluators.report.evidence import read_evidence


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("results", type=Path, nargs="+", help="folders of dgad attack; several share a page")
    parser.add_argument("--times", type=int, default=10, help="drawings after the first")
    options = parser.parse_args()
    seconds = []
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "report.html"
        for _ in range(options.times + 1):
            begun = time.perf_counter()
            evidence = [read_evidence(each) for each in options.results]
            write_report(evidence, path)
            seconds.append(time.perf_counter() - begun)
        size = path.stat().st_size
    found = evidence[0].results
    attacks = sum(row.seconds for each in evidence for row in each.results.attacks)
    print(f"{processor()}: {len(evidence)} evaluations, {found.dataset.n:,} images of {found.dataset.shape}")
    print(f"first {seconds[0]:.2f} s, then {statistics.median(seconds[1:]):.2f} s (median of {options.times})")
    print(f"{size / 1024:,.0f} KiB; the attacks took {attacks:.1f} s")


if __name__ == "__main__":
    main()
