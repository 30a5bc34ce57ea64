"""An app that uses what Modal has deprecated."""
# apps for Modal import modal

import modal

app = modal.App("outdated")


@app.function(min_containers=0)
def work() -> None: ...


@app.local_entrypoint()
def entry() -> None:
    work.update_autoscaler(max_containers=1)
