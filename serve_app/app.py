"""The graph, drawn in one screen: ingress → conductor → one lm a model, one dit a variant, vae."""

import ray
from ray import serve
from ray.serve import Application

from serve_app.artifacts import place
from serve_app.deployments.conductor import ConductorReplica
from serve_app.deployments.dit import DitReplica
from serve_app.deployments.lm import LmReplica
from serve_app.deployments.vae import VaeReplica
from serve_app.ingress import Ingress
from serve_app.jobs import database
from serve_app.listening import listening_host, refuse_open
from serve_app.prepare import prepare
from serve_app.settings import AppSettings


def build_app(settings: AppSettings) -> Application:
    """What `serve run` and every config file call, with the file's `args:`.

    Serve reads the annotation at run time to validate the arguments, so it must not become a string.
    Shares of CPU and GPU, replica counts and queue lengths are set by deployment name in the config file.
    Raises CheckpointError when a checkpoint is absent, BadDatabase or BadStorage when several hosts would keep jobs or
    audio of their own, OpenToAll when others than this machine could use it without a key, and BadKeys.
    """
    refuse_open(listening_host(), settings.api)
    hosts = count_hosts()
    database.refuse_scattered(settings.database_url, hosts)
    place.check_place(settings, hosts)
    prepare(settings)
    return graph(settings)


def count_hosts() -> int:
    """Machines of this Ray cluster that a replica may run on."""
    nodes = [node for node in ray.nodes() if node["Alive"] and node["Resources"].get("CPU")]  # type: ignore[no-untyped-call]
    return len({node["NodeManagerHostname"] for node in nodes})


def graph(settings: AppSettings) -> Application:
    lms = {lm.deployment: serve.deployment(name=lm.deployment)(LmReplica).bind(settings, lm) for lm in settings.lm}
    dits = {dit.model: serve.deployment(name=dit.deployment)(DitReplica).bind(settings, dit) for dit in settings.dit}
    vae = serve.deployment(name="vae")(VaeReplica).bind(settings)
    # a conductor that stands still holds up the stages it listens to, and with them everybody's songs
    watched = serve.deployment(name="conductor", health_check_period_s=10, health_check_timeout_s=10)
    conductor = watched(ConductorReplica).bind(settings, lms, dits, vae)
    return serve.deployment(name="ingress")(serve.ingress()(Ingress)).bind(settings, conductor, lms)
