"""The composition root: every part of a node is made here, started in order, and stopped in reverse.

    data directory → links, replicas, view (nothing runs yet) → server (answers Hello, everything else NOT_READY)
    → the cluster is
    founded or joined → metadata, controller, data path → serving

Nothing is decided here; if a line of this file has an `if` about the cluster's state, it belongs elsewhere.
"""

from __future__ import annotations

import asyncio
from collections.abc import Coroutine
from importlib.metadata import version
from typing import Any

from fluxd.broker.administration import Administration
from fluxd.broker.admission import Admission
from fluxd.broker.balance import LeaderBalancer
from fluxd.broker.binding import ReplicaBinding
from fluxd.broker.checking import CheckingReplicas
from fluxd.broker.cleaner import Cleaner
from fluxd.broker.cluster import ClusterView, LocalNode
from fluxd.broker.controller import Controller
from fluxd.broker.coordinators import Coordinators
from fluxd.broker.currency import MetadataCurrency
from fluxd.broker.fetch import Fetching
from fluxd.broker.forward import FORWARDED_KEY, Forwarder
from fluxd.broker.founding import Joining, StartError
from fluxd.broker.group_describe import Describing
from fluxd.broker.group_membership import Membership
from fluxd.broker.group_requests import GroupRequests
from fluxd.broker.metadata import Change, MetadataFollower
from fluxd.broker.neighbours import Neighbours
from fluxd.broker.offsets import ListingOffsets
from fluxd.broker.partitions import Partitions
from fluxd.broker.produce import Producing
from fluxd.broker.quarantine_keeper import QuarantineKeeper
from fluxd.broker.routes import Routes
from fluxd.broker.thin_consuming import ThinConsuming
from fluxd.broker.waiting import WaitingRoom
from fluxd.config import Settings
from fluxd.core import limits
from fluxd.core.errors import FluxError, Reason
from fluxd.core.metadata import Partition, founding_image
from fluxd.core.runtime import ReadingReactor
from fluxd.core.types import METADATA_GROUP, NodeId
from fluxd.machine import MACHINE, Listener, Machine
from fluxd.observability import get_logger
from fluxd.peer.identity import Identity
from fluxd.peer.links import Links
from fluxd.peer.reception import Reception
from fluxd.raft.group import Group
from fluxd.raft.host import Host
from fluxd.raft.library import LibraryError, check_library
from fluxd.raft.replicas import Replica
from fluxd.raft.scrubbing import Scrubber
from fluxd.raft.spec import GroupSpec
from fluxd.rpc.admin import WRITES, AdminServicer
from fluxd.rpc.admin_node import NodeControl
from fluxd.rpc.consume import ConsumerService
from fluxd.rpc.groups import GroupsBroker, GroupsService
from fluxd.rpc.handling import Context, typed_service
from fluxd.rpc.log import Broker, LogService
from fluxd.rpc.peer import PeerService
from fluxd.storage.directory import VOTES_NAME, DataDirectory, open_directory
from fluxd.storage.errors import DirectoryError, VotesCorrupt, VotesMissing
from fluxd.storage.votes import VoteFile
from fluxlog.v1 import admin_pb2

_GRACE = 0.2
"""For answers that are on their way when the server stops."""
_KILL_DELAY = 0.05

log = get_logger()


class Node:
    """One node, from start to end. `run` returns when it was stopped.

    Args:
        settings: validated.
        reactor: on the running loop.
        machine: disk, network, randomness.
    """

    def __init__(
        self,
        settings: Settings,
        reactor: ReadingReactor,
        machine: Machine = MACHINE,
    ) -> None:
        self._settings, self._reactor, self._machine = settings, reactor, machine
        self._secret = settings.cluster_secret.get_secret_value().encode() or machine.random_bytes(32)
        self._addresses = {NodeId(node): address for node, address in settings.seeds.items()}
        self._ended = asyncio.Event()
        self._failure: StartError | None = None
        self._stopping = False
        self._broker: Broker | None = None
        self._administration: Administration | None = None
        self._checking: CheckingReplicas | None = None
        self._groups: GroupsBroker | None = None
        self._directory = self._open_directory()
        self._votes, self._votes_why = self._open_votes()
        self._me = Identity(
            NodeId(settings.node_id),
            bytes.fromhex(self._directory.meta.directory_id),
            settings.seed_list,
            settings.advertise,
            machine.process_id(),
            version("fluxd"),
            settings.allow_remote_stop,
            random_bytes=machine.random_bytes,
        )
        self._links = Links(self._me, self._secret, self._addresses, machine.network)
        self._host = self._make_host()
        self._view = ClusterView(
            reactor, self._local_node(), self._host.groups, answered=self._host.heartbeats.answered,
            disk_full=lambda: self._host.disk_full, files_why=lambda: [file.why for file in self._host.files],
        )  # fmt: skip
        self._forwarder = Forwarder(self._me, self._secret, self._links, list(self._addresses), machine.network)
        self._neighbours = Neighbours(self._links, self._host, self._view, self._forwarder, on_fatal=self.fail)
        self._reception = Reception(self._me, self._secret, self._links.directory_of)
        self._admission = Admission()
        self._server = self._make_server()

    # ---- making

    def _open_directory(self) -> DataDirectory:
        root, machine = self._settings.data_dir, self._machine
        try:
            return open_directory(
                machine.filesystem(root), root if machine.locks_directories else None,
                NodeId(self._settings.node_id), machine.random_bytes,
            )  # fmt: skip
        except DirectoryError as error:
            raise StartError(f"data directory {root}: {error}") from error
        except OSError as error:
            raise self._unusable(error) from error

    def _unusable(self, error: OSError) -> StartError:
        return StartError(f"data directory {self._settings.data_dir} cannot be used: {error}")

    def _open_votes(self) -> tuple[VoteFile | None, str]:
        """Where they are lost, and others can say what was committed, all replicas here are copied anew."""
        directory = self._directory
        try:
            return VoteFile.open(directory.fs, VOTES_NAME), ""
        except (VotesMissing, VotesCorrupt) as error:
            if len(self._addresses) < limits.COPY_VOTERS_MIN:
                return None, str(error)
            log.warning("votes_lost", why=str(error), directory_id=directory.meta.directory_id)
            try:
                directory.renew(self._machine.random_bytes)
                return VoteFile.open(directory.fs, VOTES_NAME), ""
            except OSError as failure:
                raise self._unusable(failure) from failure
        except OSError as error:
            raise self._unusable(error) from error

    def _make_host(self) -> Host:
        try:
            check_library()
        except LibraryError as error:
            raise StartError(str(error)) from error
        return Host(
            self._me.node_id, self._me.directory_id, reactor=self._reactor, fs=self._directory.fs, votes=self._votes,
            transport=self._links, log_event=_log_event, votes_why=self._votes_why,
        )  # fmt: skip

    def _local_node(self) -> LocalNode:
        me = self._me
        return LocalNode(
            me.node_id, me.directory_id, me.advertised_address, me.process_id, me.version, me.allows_remote_stop
        )

    def _make_server(self) -> Listener:
        control = NodeControl(
            self._me.node_id, allowed=self._settings.allow_remote_stop, stop=self.stop, kill=self._kill_soon
        )
        admin = AdminServicer(self._the_administration, self._the_checking, self._view, self._is_forwarded)
        return self._machine.listener(
            self._settings.listen,
            [
                PeerService(self._reception, self._neighbours).handlers(),
                LogService(self._the_broker, self._is_forwarded).handlers(),
                GroupsService(self._me.node_id, self._the_groups, self._forwarded_by).handlers(),
                ConsumerService(self._me.node_id, lambda: self._the_groups().consuming).handlers(),
                typed_service(admin_pb2.DESCRIPTOR.services_by_name["Admin"], [admin, control], writes=WRITES),
            ],
        )

    # ---- the life of a node

    async def run(self) -> None:
        """Serve until stopped.

        The directory stays this process's until the process ends: what hangs or waits in the reactor's threads may
        still change its files, and would take back what another process has voted meanwhile.

        Raises:
            StartError: the node could not start, or had to give up.
        """
        try:
            await self._start_server()
            await self._until_ended(self._join())
            if not self._ended.is_set():
                await self._live()
        finally:
            await self._server.stop(_GRACE)
            self._host.stop()
        if self._failure is not None:
            raise self._failure

    async def _join(self) -> None:
        joining = Joining(
            self._me, self._directory, self._secret, self._addresses, self._reactor, self._machine.network
        )
        try:
            await joining.join()
        except OSError as error:
            raise self._unusable(error) from error

    def stop(self) -> None:
        """Begin to stop: hand over, finish, end."""
        self._ended.set()

    def fail(self, error: Exception) -> None:
        """Give up: this node must not go on."""
        self._failure = error if isinstance(error, StartError) else StartError(str(error))
        self._ended.set()

    async def _start_server(self) -> None:
        try:
            await self._server.start()
        except OSError as error:
            raise StartError(str(error)) from error
        log.info(
            "node_started", listen=self._settings.listen, advertise=self._settings.advertise, version=self._me.version
        )

    async def _until_ended(self, work: Coroutine[Any, Any, None]) -> None:
        """Run something that may take for ever, unless the node is stopped."""
        task, ended = asyncio.ensure_future(work), asyncio.ensure_future(self._ended.wait())
        await asyncio.wait([task, ended], return_when=asyncio.FIRST_COMPLETED)
        ended.cancel()
        if not task.done():
            task.cancel()
        await asyncio.gather(task, return_exceptions=self._ended.is_set())

    async def _live(self) -> None:
        """As a member of a cluster."""
        founding = self._me.founding
        assert founding is not None
        image = founding_image(founding)
        self._view.cluster_id, self._view.image = founding.cluster_id, image
        follower = MetadataFollower(self._reactor, image, on_fatal=self.fail)
        try:
            names = self._directory.partitions()
        except OSError as error:
            raise self._unusable(error) from error
        partitions = Partitions(self._reactor, self._host, self._directory, self._view, names_at_start=names)
        binding = ReplicaBinding(self._reactor, self._view, image, self._directory.set_metadata_bound)
        follower.listeners += [self._take_image, partitions.apply, binding.metadata_changed]
        self._host.bind = binding.bind
        replica = self._host.open(self._metadata_spec(image.topics[METADATA_GROUP.topic_id].partitions[0]))
        self._view.attach(replica)
        group = replica if isinstance(replica, Group) else None
        currency = MetadataCurrency(self._view, follower, group, self._forwarder)
        controller = Controller(self._reactor, self._view, follower, group) if group is not None else None
        coordinators = self._build_data_path(currency, controller)

        assert self._administration is not None
        administration = self._administration

        def reopened(replica: Replica) -> None:
            partitions.reopened(replica)
            if replica.group_id == METADATA_GROUP and isinstance(replica, Group):
                currency.group = replica
                if administration.controller is not None:
                    administration.controller.close()
                administration.controller = Controller(self._reactor, self._view, follower, replica)

        self._host.on_reopened = reopened
        follower.listeners.append(coordinators.metadata_changed)
        balancer = LeaderBalancer(self._reactor, self._view, self._host.groups)
        cleaner = Cleaner(self._reactor, self._view, self._host.groups)
        self._host.files.append(self._directory)
        keeper = QuarantineKeeper(self._reactor, self._directory.fs, keep_s=self._settings.quarantine_retention)
        scrubber = Scrubber(
            self._reactor, self._host, _log_event, interval_s=self._settings.scrub_interval,
            bytes_per_second=self._settings.scrub_bytes_per_second,
        )  # fmt: skip

        async with asyncio.TaskGroup() as tasks:
            running = [
                tasks.create_task(self._neighbours.run()),
                tasks.create_task(self._forwarder.run()),
                tasks.create_task(self._confirm(currency, partitions)),
                tasks.create_task(coordinators.run()),
                tasks.create_task(currency.fetch_metadata()),
            ]
            if group is not None:
                follower.follow(group)
            balancer.start()
            cleaner.start()
            scrubber.start()
            keeper.start()
            await self._server.set_serving(serving=True)
            log.info("node_serving", cluster_id=founding.cluster_id)
            await self._ended.wait()
            cleaner.stop()
            scrubber.stop()
            keeper.stop()
            await self._drain(balancer)
            follower.stop()
            partitions.stop()
            for task in running:
                task.cancel()

    def _metadata_spec(self, metadata: Partition) -> GroupSpec:
        """As the founding says it, or what this directory remembers of a later binding."""
        own = self._me.directory_id
        bound = own if self._directory.meta.metadata_bound else metadata.directory_of(self._me.node_id) or b""
        return GroupSpec(
            METADATA_GROUP, metadata.generation, metadata.voters, bound, segment_bytes=limits.METADATA_SEGMENT_BYTES
        )

    def _build_data_path(self, currency: MetadataCurrency, controller: Controller | None) -> Coordinators:
        routes = Routes(self._view, self._host.groups, currency.confirm, self._links.is_connected)
        self._broker = Broker(
            Producing(self._reactor, routes, self._forwarder, self._admission),
            Fetching(self._reactor, routes, self._forwarder, WaitingRoom()),
            ListingOffsets(self._reactor, routes, self._forwarder),
            Admission(limits.FETCH_BUFFER_BYTES_MAX, limits.FETCH_BUFFER_BYTES_MAX // 2),
        )
        self._administration = Administration(self._view, routes, currency, controller, self._forwarder)
        self._checking = CheckingReplicas(self._reactor, routes, self._host.groups, self._forwarder)
        coordinators = Coordinators(
            self._reactor, self._view, self._host.groups, routes, self._administration, currency
        )
        describing = Describing(self._reactor, self._me.node_id, self._broker.offsets, self._broker.fetching)
        requests = GroupRequests(coordinators, routes, self._forwarder, describing)
        membership = Membership(coordinators, self._forwarder, routes)
        consuming = ThinConsuming(self._reactor, membership, requests, self._broker.fetching, self._broker.offsets)
        self._groups = GroupsBroker(requests, membership, consuming)
        return coordinators

    @staticmethod
    async def _confirm(currency: MetadataCurrency, partitions: Partitions) -> None:
        await currency.confirm_at_last()
        partitions.confirmed()

    async def _drain(self, balancer: LeaderBalancer) -> None:
        """Hand leaderships over while still serving, then refuse what is new and let the rest finish."""
        log.info("node_stop_began")
        balancer.stop()
        await self._server.set_serving(serving=False)
        handed_over = asyncio.Event()
        try:
            async with asyncio.timeout(self._settings.stop_timeout):
                self._host.hand_over(handed_over.set)
                await handed_over.wait()
                self._stopping = True
                self._end_members()
                await self._admission.drained()
        except TimeoutError:
            log.warning("node_stop_hurried", stop_timeout_s=self._settings.stop_timeout)
        self._stopping = True
        await self._server.stop(_GRACE)

    def _end_members(self) -> None:
        if self._groups is not None:
            self._groups.membership.stop()

    def _kill_soon(self) -> None:
        """The answer that announces it should leave first."""
        asyncio.get_running_loop().call_later(_KILL_DELAY, self._machine.kill)

    # ---- what the doors ask

    def _check_ready(self) -> None:
        if self._stopping:
            raise FluxError(Reason.STOPPING, f"node {self._me.node_id} is shutting down")
        if self._broker is None:
            raise FluxError(Reason.NOT_READY, f"node {self._me.node_id} has not joined its cluster yet")

    def _the_broker(self) -> Broker:
        self._check_ready()
        assert self._broker is not None
        return self._broker

    def _the_administration(self) -> Administration:
        self._check_ready()
        assert self._administration is not None
        return self._administration

    def _the_checking(self) -> CheckingReplicas:
        self._check_ready()
        assert self._checking is not None
        return self._checking

    def _the_groups(self) -> GroupsBroker:
        self._check_ready()
        assert self._groups is not None
        return self._groups

    def _forwarded_by(self, context: Context) -> NodeId | None:
        """The node that passes a call on. Only members may say so."""
        metadata = context.invocation_metadata() or ()
        if not any(key == FORWARDED_KEY for key, _ in metadata):
            return None
        return self._reception.admit_member(metadata, context.peer()).node_id

    def _is_forwarded(self, context: Context) -> bool:
        return self._forwarded_by(context) is not None

    def _take_image(self, change: Change) -> None:
        self._view.image = change.new


_WARNINGS = frozenset(
    {"replica_failed", "replica_unadmitted", "loop_stalled", "snapshot_failed", "leader_disk_hung", "log_damaged"}
)


def _log_event(event: str, **fields: object) -> None:
    """Events of the groups, which know no logger."""
    (log.warning if event in _WARNINGS else log.info)(event, **fields)
