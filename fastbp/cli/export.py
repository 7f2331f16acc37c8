"""``fastbp export``: the network of a run in a form that other programs compute."""

from .. import loading
from ..model import Sequential
from . import runs, terminal

WRITERS = {".onnx": "to_onnx", ".h": "to_c", ".safetensors": "save", ".npz": "save"}


def add_options(parser):
    """The model and the file."""
    parser.add_argument("model", metavar="RUN_OR_MODEL", help="folder of a run, or a model file")
    parser.add_argument(
        "output", metavar="OUT", help="ends in .onnx, .h (a header in C99), .safetensors or .npz; is replaced if there"
    )


def run(options):
    """Write the network, and say what it takes and gives."""
    path = runs.model_path(options.model)
    found = loading.load(path)
    network = found if isinstance(found, Sequential) else found.model
    ending = next((ending for ending in WRITERS if options.output.endswith(ending)), None)
    if ending is None:
        raise ValueError(f"{options.output}: expected a name ending in {', '.join(WRITERS)}")
    getattr(network, WRITERS[ending])(options.output)
    screen = terminal.screen()
    screen.item("saved", options.output)
    if found is network or ending in (".safetensors", ".npz"):
        return
    labels = found.preprocessing.labels
    screen.item("takes", f"{terminal.counted(len(labels), 'prepared number')} a row: {', '.join(labels)}")
    screen.item(
        "", "they are what the preprocessing in the run makes of a table: fastbp.load(…).preprocessing.transform"
    )
    if found.target.classes is not None:
        screen.item("gives", f"logits of the classes {', '.join(map(str, found.target.classes))}")
    elif found.target.link == "log":
        screen.item("gives", f"log({found.target.name} / {found.target.scale:.9g})")
    else:
        screen.item("gives", f"({found.target.name} - {found.target.mean:.9g}) / {found.target.scale:.9g}")
