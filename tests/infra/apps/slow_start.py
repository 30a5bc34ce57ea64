"""An app whose containers never finish starting."""
# apps for Modal import modal

import threading

import modal

app = modal.App("slow-start")

if not modal.is_local():
    threading.Event().wait()


@app.function(startup_timeout=1)
def work() -> None: ...
