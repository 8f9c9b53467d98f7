//! The ids of every event that the daemon logs.
//!
//! Tests match ids and fields, so that a log message can change without them. `tests/events.rs`
//! compares this list with the source and with docs/operations.md.

macro_rules! events {
    ($($event:ident = $id:literal,)+) => {
        /// The event that a log record reports.
        #[derive(Clone, Copy, Debug, PartialEq, Eq)]
        pub(crate) enum Event {
            $($event,)+
        }

        impl Event {
            pub(crate) const ALL: &[Self] = &[$(Self::$event,)+];

            /// Returns the id as it appears in the log.
            pub(crate) const fn id(self) -> &'static str {
                match self {
                    $(Self::$event => $id,)+
                }
            }
        }
    };
}

events! {
    AcceptFailed = "accept.failed",
    AcceptFailedToo = "accept.failed_too",
    AcceptInterruptFailed = "accept.interrupt_failed",
    AcceptResumeFailed = "accept.resume_failed",
    AcceptResumed = "accept.resumed",
    AcceptUninterruptible = "accept.uninterruptible",
    AloneBlocked = "alone.blocked",
    AloneDropped = "alone.dropped",
    AlonePanicked = "alone.panicked",
    BacklogLeft = "backlog.left",
    CarryAnswerFailed = "carry.answer_failed",
    CarryAnswerInvalid = "carry.answer_invalid",
    CarryCheckPanicked = "carry.check_panicked",
    CarryConnectionDeclined = "carry.connection_declined",
    CarryConnectionRefused = "carry.connection_refused",
    CarryLost = "carry.lost",
    CarryMessageInvalid = "carry.message_invalid",
    CarrySendFailed = "carry.send_failed",
    CarryTakenOver = "carry.taken_over",
    CarryUnavailable = "carry.unavailable",
    CarryUnknownFormat = "carry.unknown_format",
    ClientRefused = "client.refused",
    ConnectionAborted = "connection.aborted",
    ConnectionCopyFailed = "connection.copy_failed",
    ConnectionEnded = "connection.ended",
    ConnectionHandshakeFailed = "connection.handshake_failed",
    ConnectionHandshakePanicked = "connection.handshake_panicked",
    ConnectionHttpFailed = "connection.http_failed",
    ConnectionLost = "connection.lost",
    ConnectionOptionFailed = "connection.option_failed",
    ConnectionUnwatched = "connection.unwatched",
    ControlClientGone = "control.client_gone",
    ControlConversationFailed = "control.conversation_failed",
    ControlDenied = "control.denied",
    ControlFailed = "control.failed",
    ControlOpen = "control.open",
    ControlPeerUnknown = "control.peer_unknown",
    ControlRequestDropped = "control.request_dropped",
    DrainCutShort = "drain.cut_short",
    DrainOutlived = "drain.outlived",
    DrainStarted = "drain.started",
    GenerationAccepting = "generation.accepting",
    GenerationDied = "generation.died",
    GenerationEnded = "generation.ended",
    GenerationGone = "generation.gone",
    GenerationResumed = "generation.resumed",
    GenerationServing = "generation.serving",
    GenerationStep = "generation.step",
    GenerationUnreachable = "generation.unreachable",
    HandoffCommitted = "handoff.committed",
    HandoffDelayed = "handoff.delayed",
    HandoffFailed = "handoff.failed",
    HandoffGivenBack = "handoff.given_back",
    HandoffHastened = "handoff.hastened",
    HandoffStarted = "handoff.started",
    InitUnreachable = "init.unreachable",
    LimitUnchanged = "limit.unchanged",
    ListenerAdopted = "listener.adopted",
    ListenerBacklogLost = "listener.backlog_lost",
    ListenerBacklogUnwatched = "listener.backlog_unwatched",
    ListenerBlocking = "listener.blocking",
    ListenerBound = "listener.bound",
    ListenerDivertFailed = "listener.divert_failed",
    ListenerFull = "listener.full",
    ListenerPortShared = "listener.port_shared",
    ListenerUnused = "listener.unused",
    LogDropped = "log.dropped",
    MessageInvalid = "message.invalid",
    MessageUnexpected = "message.unexpected",
    MessageUnknown = "message.unknown",
    MetricsFailed = "metrics.failed",
    NameChanged = "name.changed",
    NameFailed = "name.failed",
    NameFailedAgain = "name.failed_again",
    NameResolvedAgain = "name.resolved_again",
    NotifyFailed = "notify.failed",
    NotifyUnheard = "notify.unheard",
    OfferFailed = "offer.failed",
    PidFileDraftRemoved = "pid_file.draft_removed",
    PidFileFailed = "pid_file.failed",
    PidFileRemoveFailed = "pid_file.remove_failed",
    PidFileWritten = "pid_file.written",
    ProcessFailed = "process.failed",
    ProcessPanicked = "process.panicked",
    ProcessUnwatched = "process.unwatched",
    ProgramCheckImpossible = "program.check_impossible",
    ProgramEnded = "program.ended",
    ProgramKilled = "program.killed",
    ProgramMainProcess = "program.main_process",
    ProgramMainProcessIgnored = "program.main_process_ignored",
    ProgramNotificationIgnored = "program.notification_ignored",
    ProgramReady = "program.ready",
    ProgramReadyGuessed = "program.ready_guessed",
    ProgramRestarting = "program.restarting",
    ProgramStarted = "program.started",
    ProgramStopping = "program.stopping",
    ProgramWatched = "program.watched",
    ReloadIgnored = "reload.ignored",
    ReloadPending = "reload.pending",
    RollbackIgnored = "rollback.ignored",
    ServerDropped = "server.dropped",
    ServerFailed = "server.failed",
    ServerHung = "server.hung",
    ServerReturned = "server.returned",
    SignalIgnored = "signal.ignored",
    SignalReceived = "signal.received",
    SocketAccessUnchanged = "socket.access_unchanged",
    SocketLockFailed = "socket.lock_failed",
    SocketPathTaken = "socket.path_taken",
    SocketPortShared = "socket.port_shared",
    SocketUnclaimed = "socket.unclaimed",
    SocketUnlinkFailed = "socket.unlink_failed",
    StoreRefused = "store.refused",
    SuccessorCloseFailed = "successor.close_failed",
    SuccessorDied = "successor.died",
    SuccessorEnded = "successor.ended",
    SuccessorReady = "successor.ready",
    SuccessorSignalled = "successor.signalled",
    SuccessorStopped = "successor.stopped",
    SuccessorUnreachable = "successor.unreachable",
    UpstreamAnyAvailable = "upstream.any_available",
    UpstreamAvailable = "upstream.available",
    UpstreamCheckImpossible = "upstream.check_impossible",
    UpstreamFailed = "upstream.failed",
    UpstreamNoneAvailable = "upstream.none_available",
    UpstreamUnavailable = "upstream.unavailable",
    WorkerDied = "worker.died",
    WorkerHung = "worker.hung",
}

impl Event {
    /// Returns the event of a log line. The message comes before the fields, and the id is the
    /// first of them.
    pub(crate) fn of(line: &str) -> Option<Self> {
        let (_, rest) = line.split_once(" event=\"")?;
        let (id, _) = rest.split_once('"')?;
        Self::ALL.iter().copied().find(|event| event.id() == id)
    }
}
