"""What a user waits for before the first result: import, compilation, kernels from the cache. In fresh processes."""

import json
import os
import statistics
import subprocess
import sys
import tempfile

FIRST_STEP = """
import json, time
start = time.perf_counter()
import numpy as np, fastbp
model = fastbp.Sequential(fastbp.Linear(64, 128), fastbp.ReLU(), fastbp.Linear(128, 10), seed=0)
x, y = np.random.default_rng(0).random((64, 64), np.float32), np.arange(64) % 10
model.train_step(x, y, fastbp.CrossEntropyLoss(), fastbp.Adam(lr=1e-3))
seconds = time.perf_counter() - start
from fastbp.kernels import jit
print(json.dumps([seconds, len(jit.compiled)]))
"""


class Import:
    """The second is what of the others is NumPy's."""

    def timeraw_import(self):
        return "import fastbp"

    def timeraw_import_numpy(self):
        return "import numpy"

    def timeraw_cli_help(self):
        return """
        import contextlib, io
        from fastbp.cli import main
        with contextlib.suppress(SystemExit), contextlib.redirect_stdout(io.StringIO()):
            main(["--help"])
        """


class FirstStep:
    """From before the import to the end of one train step, without cached kernels (cold) and with them (warm)."""

    params = (["cold", "warm"],)
    param_names = ("cache",)
    timeout = 300

    def setup_cache(self):
        """Seconds and kernels compiled: of a process with an empty cache, and the medians of three after it."""

        def first_step(directory):
            command = [sys.executable, "-c", FIRST_STEP]
            output = subprocess.check_output(command, env=os.environ | {"FASTBP_CACHE_DIR": directory}, text=True)
            return json.loads(output)

        with tempfile.TemporaryDirectory() as directory:
            cold = first_step(directory)
            warm = [first_step(directory) for _ in range(3)]
        return {"cold": cold, "warm": [statistics.median(figures) for figures in zip(*warm, strict=True)]}

    def track_seconds(self, measured, cache):
        return measured[cache][0]

    track_seconds.unit = "s"

    def track_compiled(self, measured, cache):
        return measured[cache][1]

    track_compiled.unit = "kernels"
