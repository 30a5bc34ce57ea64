"""An app whose module needs a file that no mount carries: fine here, broken in a container."""
# apps for Modal import modal

import modal
from neighbour import GREETING  # type: ignore[import-not-found]  # beside this script, not in a package

app = modal.App("unmounted")


@app.function()
def greet() -> str:
    return str(GREETING)
