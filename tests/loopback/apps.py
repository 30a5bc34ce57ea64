"""Apps, functions and classes: what a deploy registers, kept as the very messages it sent."""

import time
from collections.abc import AsyncIterator, Awaitable, Callable
from dataclasses import dataclass, field
from pathlib import Path

from modal_proto import api_pb2 as pb

from tests.loopback.calls import Signal
from tests.loopback.containers import Container, Host, Pool
from tests.loopback.rpc import EMPTY, Empty, Message, new_id, not_found

LOGS_EVERY_S = 0.2


@dataclass(eq=False)
class Registered:
    """A function, a class's service function (named `Cls.*`), or a variant of one.

    `spec` is the Function message as sent; for a ranked list of GPUs, the first choice's, with all
    choices in `data`. A variant's `spec` has its options applied and `base` set.
    """

    app_id: str
    name: str
    function_id: str = field(default_factory=lambda: new_id("fu"))
    spec: pb.Function = field(default_factory=pb.Function)
    data: pb.FunctionData | None = None
    base: "Registered | None" = None
    serialized_params: bytes = b""
    options: pb.FunctionOptions | None = None
    web_urls: dict[str, str] = field(default_factory=dict)  # by method name, "" for a plain function

    @property
    def gpus(self) -> list[str]:
        """The GPU or the ranked list of them, as written in the app: `L40S`, `H100:2`."""
        specs = [ranked.function for ranked in self.data.ranked_functions] if self.data else [self.spec]
        configs = [spec.resources.gpu_config for spec in specs]
        return [f"{c.gpu_type}:{c.count}" if c.count > 1 else c.gpu_type for c in configs if c.count]

    @property
    def schedule(self) -> tuple[str, str] | None:
        """Cron string and time zone."""
        cron = self.spec.schedule.cron
        return (cron.cron_string, cron.timezone) if self.spec.schedule.HasField("cron") else None

    def handle(self) -> pb.FunctionHandleMetadata:
        """What a client needs to call it."""
        spec, methods = self.spec, {}
        for name, method in spec.method_definitions.items():
            methods[name] = pb.FunctionHandleMetadata(
                function_name=method.function_name,
                function_type=method.function_type,
                use_method_name=name,
                web_url=self.web_urls.get(name, ""),
                function_schema=method.function_schema,
                supported_input_formats=method.supported_input_formats,
                supported_output_formats=method.supported_output_formats,
                app_id=self.app_id,
            )
        return pb.FunctionHandleMetadata(
            function_name=self.name,
            function_type=spec.function_type,
            web_url=self.web_urls.get("", ""),
            is_method=spec.is_method,
            definition_id=f"de-{self.function_id}",
            class_parameter_info=spec.class_parameter_info,
            method_handle_metadata=methods,
            function_schema=spec.function_schema,
            supported_input_formats=spec.supported_input_formats,
            supported_output_formats=spec.supported_output_formats,
            app_id=self.app_id,
        )

    def described(self) -> pb.FunctionData:
        """The FunctionData that the client turns into its `FunctionInfo`."""
        if self.data:
            return self.data
        data = pb.FunctionData(function_name=self.name, is_class=self.spec.is_class)
        data.ranked_functions.add(rank=0).function.CopyFrom(self.spec)
        return data


@dataclass(eq=False)
class App:
    name: str
    app_id: str = field(default_factory=lambda: new_id("ap"))
    state: int = pb.APP_STATE_INITIALIZING
    functions: dict[str, Registered] = field(default_factory=dict)
    classes: dict[str, str] = field(default_factory=dict)  # class name -> id
    done: Signal = field(default_factory=Signal)


OpenWeb = Callable[[Registered, str, pb.WebhookConfig], Awaitable[str]]


def apply_options(spec: pb.Function, options: pb.FunctionOptions) -> None:
    """What `with_options` and its kin change; secrets and volumes replace, resources merge."""
    if options.replace_secret_ids:
        spec.secret_ids[:] = options.secret_ids
    if options.replace_volume_mounts:
        del spec.volume_mounts[:]
        spec.volume_mounts.extend(options.volume_mounts)
    if options.HasField("resources"):
        spec.resources.MergeFrom(options.resources)
    if options.HasField("retry_policy"):
        spec.retry_policy.CopyFrom(options.retry_policy)
    for name in ("timeout_secs", "max_concurrent_inputs", "target_concurrent_inputs"):
        if options.HasField(name):
            setattr(spec, name, getattr(options, name))
    settings = spec.autoscaler_settings
    if options.HasField("concurrency_limit"):
        settings.max_containers = options.concurrency_limit
    if options.HasField("task_idle_timeout_secs"):
        settings.scaledown_window = options.task_idle_timeout_secs
    if options.HasField("buffer_containers"):
        settings.buffer_containers = options.buffer_containers
    settings.min_containers = 0  # with_options has no warm pool


class Apps:
    """The registry and its RPCs."""

    def __init__(self, host: Host, open_web: OpenWeb) -> None:
        self.host, self.open_web = host, open_web
        self.apps: dict[str, App] = {}
        self.functions: dict[str, Registered] = {}
        self.pools: dict[str, Pool] = {}
        self.classes: dict[str, str] = {}  # class id -> app id

    def pool(self, function_id: str) -> Pool:
        if function_id not in self.functions:
            raise not_found(f"function {function_id}")
        if function_id not in self.pools:
            self.pools[function_id] = Pool(self.functions[function_id], self.host)
        return self.pools[function_id]

    def containers(self) -> list[Container]:
        return [container for pool in self.pools.values() for container in pool.containers]

    def container(self, task_id: str) -> Container:
        return next(container for container in self.containers() if container.task_id == task_id)

    def deployed(self, name: str) -> App:
        for app in self.apps.values():
            if app.name == name and app.state == pb.APP_STATE_DEPLOYED:
                return app
        raise not_found(f"App '{name}' is not deployed")

    def layout(self, app_id: str) -> pb.AppLayout:
        """Ids and metadata of the app's objects, also of those that its functions depend on."""
        app, layout = self.apps[app_id], pb.AppLayout()
        others: set[str] = set()
        for name, registered in app.functions.items():
            layout.function_ids[name] = registered.function_id
            layout.objects.add(object_id=registered.function_id, function_handle_metadata=registered.handle())
            others |= {dependency.object_id for dependency in registered.spec.object_dependencies}
        for name, class_id in app.classes.items():
            layout.class_ids[name] = class_id
            layout.objects.add(object_id=class_id, class_handle_metadata=self._class_metadata(app, name))
        for object_id in sorted(others):
            is_volume = object_id.startswith("vo-")
            metadata = self.host.volumes.metadata(object_id) if is_volume else None
            layout.objects.add(object_id=object_id, volume_metadata=metadata)
        return layout

    def _class_metadata(self, app: App, name: str) -> pb.ClassHandleMetadata:
        service = app.functions.get(f"{name}.*")
        return pb.ClassHandleMetadata(
            class_function_id=service.function_id if service else "",
            class_function_metadata=service.handle() if service else None,
        )

    async def app_get_by_deployment_name(self, request: pb.AppGetByDeploymentNameRequest) -> Message:
        found = [app.app_id for app in self.apps.values() if app.name == request.name]
        live = [app_id for app_id in found if self.apps[app_id].state == pb.APP_STATE_DEPLOYED]
        return pb.AppGetByDeploymentNameResponse(app_id=live[-1] if live else "", environment_name="main")

    async def app_get_or_create(self, request: pb.AppGetOrCreateRequest) -> Message:
        """`modal.App.lookup`, of what is deployed."""
        return pb.AppGetOrCreateResponse(app_id=self.deployed(request.app_name).app_id)

    async def app_create(self, request: pb.AppCreateRequest) -> Message:
        app = App(request.description, state=request.app_state)
        self.apps[app.app_id] = app
        return pb.AppCreateResponse(
            app_id=app.app_id, app_page_url="http://127.0.0.1/", app_logs_url="http://127.0.0.1/"
        )

    async def app_get_layout(self, request: pb.AppGetLayoutRequest) -> Message:
        return pb.AppGetLayoutResponse(app_layout=self.layout(request.app_id))

    async def app_heartbeat(self, _request: pb.AppHeartbeatRequest) -> Empty:
        return EMPTY

    async def app_publish(self, request: pb.AppPublishRequest) -> Message:
        app = self.apps[request.app_id]
        app.name, app.state = request.name or app.name, request.app_state
        app.functions = {name: self.functions[known] for name, known in request.function_ids.items()}
        app.classes = dict(request.class_ids)
        for registered in self.functions.values():
            if registered.app_id == app.app_id and (registered.base or registered) in app.functions.values():
                self.pool(registered.function_id).redeployed()
        self.host.changed()
        return pb.AppPublishResponse(url="http://127.0.0.1/", deployed_at=time.time())

    async def app_list(self, _request: pb.AppListRequest) -> Message:
        listed = pb.AppListResponse()
        for app in self.apps.values():
            item = listed.apps.add(app_id=app.app_id, description=app.name, name=app.name)
            setattr(item, "state", app.state)  # noqa: B010  # enums are ints on the wire
        return listed

    async def app_stop(self, request: pb.AppStopRequest) -> Empty:
        self.stop(self.apps[request.app_id])
        return EMPTY

    async def app_client_disconnect(self, request: pb.AppClientDisconnectRequest) -> Empty:
        app = self.apps[request.app_id]
        if app.state == pb.APP_STATE_EPHEMERAL:
            self.stop(app)
        return EMPTY

    def stop(self, app: App) -> None:
        app.state = pb.APP_STATE_STOPPED
        for pool in self.pools.values():
            if pool.registered.app_id == app.app_id:
                pool.stop()
        app.done.fire()

    async def app_get_logs(self, request: pb.AppGetLogsRequest) -> AsyncIterator[Message]:
        """Follow the app's container logs until it stops: `modal run` shows them."""
        app, read = self.apps[request.app_id], dict[Path, int]()
        while True:
            stopped = app.state == pb.APP_STATE_STOPPED
            for container in self.containers():
                if container.pool.registered.app_id == app.app_id and container.log_path.exists():
                    with container.log_path.open("rb") as log:
                        log.seek(read.get(container.log_path, 0))
                        text = log.read()
                        read[container.log_path] = log.tell()
                    if text:
                        item = pb.TaskLogs(
                            data=text.decode(errors="replace"), file_descriptor=pb.FILE_DESCRIPTOR_STDOUT
                        )
                        yield pb.TaskLogsBatch(task_id=container.task_id, entry_id=new_id("lo"), items=[item])
            if stopped:
                yield pb.TaskLogsBatch(app_done=True)
                return
            await app.done.wait(LOGS_EVERY_S)

    async def function_precreate(self, request: pb.FunctionPrecreateRequest) -> Message:
        registered = self.functions.get(request.existing_function_id) or Registered(
            request.app_id, request.function_name
        )
        self.functions[registered.function_id] = registered
        draft = pb.Function(
            function_name=request.function_name,
            function_type=request.function_type,
            webhook_config=request.webhook_config,
            function_schema=request.function_schema,
            supported_input_formats=request.supported_input_formats,
            supported_output_formats=request.supported_output_formats,
            method_definitions=request.method_definitions,
        )
        if not registered.spec.function_name:  # a redeploy keeps the old until FunctionCreate
            registered.spec = draft
        await self._open_webs(registered, draft)
        return pb.FunctionPrecreateResponse(
            function_id=registered.function_id, handle_metadata=registered.handle()
        )

    async def _open_webs(self, registered: Registered, spec: pb.Function) -> None:
        configs = {name: method.webhook_config for name, method in spec.method_definitions.items()}
        for method, config in {"": spec.webhook_config, **configs}.items():
            if config.type and method not in registered.web_urls:
                registered.web_urls[method] = await self.open_web(registered, method, config)

    async def function_create(self, request: pb.FunctionCreateRequest) -> Message:
        ranked = request.function_data.ranked_functions
        spec = ranked[0].function if ranked else request.function
        registered = self.functions.get(request.existing_function_id) or Registered(
            request.app_id, spec.function_name
        )
        self.functions[registered.function_id] = registered
        registered.spec, registered.data = spec, request.function_data if ranked else None
        await self._open_webs(registered, spec)
        return pb.FunctionCreateResponse(
            function_id=registered.function_id,
            function=spec,
            function_data=registered.described(),
            handle_metadata=registered.handle(),
        )

    async def function_get(self, request: pb.FunctionGetRequest) -> Message:
        app = self.deployed(request.app_name)
        if (registered := app.functions.get(request.object_tag)) is None:
            raise not_found(f"no function '{request.object_tag}' in app '{app.name}'")
        return pb.FunctionGetResponse(
            function_id=registered.function_id,
            handle_metadata=registered.handle(),
            function=registered.described(),
        )

    async def function_bind_params(self, request: pb.FunctionBindParamsRequest) -> Message:
        base = self.functions[request.function_id]
        for variant in self.functions.values():
            same = variant.base is base and variant.serialized_params == request.serialized_params
            if same and variant.options == request.function_options:
                break
        else:
            variant = Registered(
                base.app_id,
                base.name,
                base=base,
                data=None,
                serialized_params=request.serialized_params,
                options=request.function_options,
                web_urls=base.web_urls,
            )
            variant.spec.CopyFrom(base.spec)
            apply_options(variant.spec, request.function_options)
            self.functions[variant.function_id] = variant
        return pb.FunctionBindParamsResponse(
            bound_function_id=variant.function_id, handle_metadata=variant.handle()
        )

    async def class_create(self, request: pb.ClassCreateRequest) -> Message:
        class_id = request.existing_class_id or new_id("cs")
        self.classes[class_id] = request.app_id
        return pb.ClassCreateResponse(class_id=class_id, handle_metadata=pb.ClassHandleMetadata())

    async def class_get(self, request: pb.ClassGetRequest) -> Message:
        app = self.deployed(request.app_name)
        if (class_id := app.classes.get(request.object_tag)) is None:
            raise not_found(f"no class '{request.object_tag}' in app '{app.name}'")
        metadata = self._class_metadata(app, request.object_tag)
        return pb.ClassGetResponse(class_id=class_id, handle_metadata=metadata)

    async def function_update_scheduling_params(
        self, request: pb.FunctionUpdateSchedulingParamsRequest
    ) -> Message:
        pool = self.pool(request.function_id)
        pool.overrides.MergeFrom(request.settings)
        pool.submit([])
        return pb.FunctionUpdateSchedulingParamsResponse(current_settings=pool.settings)

    async def function_get_current_stats(self, request: pb.FunctionGetCurrentStatsRequest) -> Message:
        pool = self.pool(request.function_id)
        running = pool.accepting()
        return pb.FunctionStats(
            backlog=len(pool.queue),
            num_total_tasks=len(running),
            num_running_inputs=sum(len(container.inputs) for container in running),
        )
