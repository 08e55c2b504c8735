"""Benchmarks go into the package when it is built: nbs/bench is their only source, mc/benchmarks where they are installed."""
from pathlib import Path

from setuptools import setup
from setuptools.command.build_py import build_py

BENCHMARKS = Path("nbs/bench")


class WithBenchmarks(build_py):
    "Copies notebooks, profiles and their texts; an editable install finds them in the checkout."

    def benchmarks(self):
        "Where each file comes from and goes to."
        target = Path(self.build_lib) / "mc" / "benchmarks"
        found = [f for pattern in ("*.ipynb", "*.yaml", "texts/*.txt") for f in sorted(BENCHMARKS.glob(pattern))]
        if not found:
            raise FileNotFoundError(f"{BENCHMARKS} has no benchmarks: build from a whole checkout")
        return {str(target / f.relative_to(BENCHMARKS)): str(f) for f in found}

    def run(self):
        super().run()
        if not self.editable_mode:
            for target, source in self.benchmarks().items():
                self.mkpath(str(Path(target).parent))
                self.copy_file(source, target)

    def get_outputs(self, include_bytecode=True):
        return super().get_outputs(include_bytecode) + ([] if self.editable_mode else [*self.benchmarks()])

    def get_source_files(self):
        return super().get_source_files() + [*self.benchmarks().values()]    # of a source distribution


setup(cmdclass={"build_py": WithBenchmarks})
