//! The actions that the state machine returns. The event loop performs them (see
//! `lifecycle/actions.rs`).

use crate::handoff::Commit;

/// An action that a generation performs.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(crate) enum Action {
    /// Tell the predecessor that this generation accepts connections.
    TellReady,
    /// Tell the predecessor that this generation stops. The predecessor then keeps serving clients.
    TellRollback,
    /// Become the active generation: write the pid file, and cut the oldest generations if more
    /// than `max_generations` are alive.
    BecomeActive,
    /// Tell the service manager that the service is up. Only the first generation of the service
    /// does this.
    NotifyReady,
    /// Start a successor, and set the deadline by which it must be ready. If a further generation
    /// would exceed `max_generations` while connections still move here from older generations,
    /// wait until they have moved.
    StartSuccessor,
    /// Start the successor's probation. When the probation ends, the handoff is committed.
    StartBake,
    /// Commit the handoff: name the successor in the pid file, and tell it that it is now the
    /// active generation.
    Commit(Commit),
    /// Report why the handoff failed. End the successor, unless it stops by itself.
    DropSuccessor,
    /// Stop using the channel to the successor. The successor had taken over, and now stops
    /// together with the whole service.
    ForgetSuccessor,
    /// Close the channels to older generations. When no process holds a channel to the newest of
    /// them, that generation accepts connections again.
    ReleaseOlder,
    /// Close the channels to older generations, so that the newest of them accepts connections
    /// again. If no older generation is alive, close the listeners for good.
    Resign,
    /// Tell the successor to stop, because this generation was told to stop.
    StopSuccessor,
    /// Stop accepting connections, but keep the listening sockets open, because another generation
    /// accepts on them.
    StopAccepting,
    /// Stop accepting for good: serve the clients in the backlogs, remove the paths of Unix
    /// sockets, and close the listening sockets.
    CloseListeners,
    /// Serve the clients in the backlogs, and close this generation's copies of the listening
    /// sockets. Keep the paths of Unix sockets, because another generation may still serve there.
    ServeBacklogs,
    /// Close this generation's copies of the listening sockets, because the predecessor serves the
    /// clients. Keep the paths of Unix sockets.
    LeaveListeners,
    /// Tell the older generations and the service manager that the whole service stops.
    TellStopping,
    /// Ask every connection to end, except connections that can move to the successor. Set the
    /// drain deadline.
    Drain,
    /// Ask the connections that have not moved to the successor to end.
    DrainUncarried,
    /// Accept connections again, because the successor has died.
    Resume,
    /// Close the open connections at once, without waiting until they end. This also ends a drain.
    Cut,
    /// Report how the drain ended, and exit.
    Exit,
}
