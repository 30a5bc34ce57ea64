"""Modal without Modal: the real client deploys a real app to this machine and real containers run it.

    with Loopback(tmp_path / "modal") as modal_here:      # or the `loopback` fixture, see `fixture`
        modal_here.set_secret("bucket", {"KEY": "…"})
        modal_here.deploy("-m", "infra.app")              # `modal deploy -m infra.app`
        assert modal_here.registered["tick"].schedule == ("* * * * *", "UTC")
        assert modal_here.trigger("tick").get(timeout=20) == …
        modal.Cls.from_name("dropbatch", "Renderer")().render.remote(…)
        modal_here.busy("Renderer").preempt()

What was registered: `registered[name]` (`.spec` is the Function message as sent, `.data` the ranked
list, `.gpus`, `.schedule`, `.web_urls`), `secrets_of`, `volumes_of`, `files_of`, `image_of`, `url_of`.

What runs: `containers()`, `busy()`, each with `.kill()`, `.preempt()`, `.log`, `.state`, `.reason`,
`.served`, `.checkpoints`, `.cold_start_s`, `.wait_exited()`; `wait_until()`, `logs()`.

What goes wrong: `lose_reply()`, `refuse()`, `expire()`, beside kill and preempt.

A container's file system is a folder of its own: what the app sees at absolute path P, mounted source
and volumes alike, lies at `$DROPBATCH_MOUNT_ROOT/P`. The checkout is not importable in a container.
`python -m tests.loopback -- COMMAND` runs a command against a loopback.
"""

from tests.loopback.server import ContainerHandle, Loopback

__all__ = ["ContainerHandle", "Loopback"]
