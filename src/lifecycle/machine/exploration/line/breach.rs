//! The forbidden situations of the lifecycle test.

/// A situation that the state machine must never cause.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(in crate::lifecycle::machine::exploration) enum Breach {
    /// The predecessor has recorded two outcomes for one handoff.
    SecondOutcome,
    /// A generation has ended although it was not told to stop and no newer generation was alive.
    Desertion,
    /// The active generation was told to stop, and has ended before its drain deadline, although an
    /// older generation or a successor still drained.
    LeftBehind,
    /// A process has read the end of a channel but has kept the channel. It would read the end
    /// again and again, in an endless loop.
    BusyLoop,
    /// A process started a successor while it had an unread message. The successor inherits the
    /// same channel, so it could read the message first.
    WordForTheWrongReader,
    /// A process started a second successor while its first successor still existed.
    TwoSuccessors,
    /// The last process that held the listening sockets has closed them without serving the clients
    /// in the backlogs.
    BacklogLost,
    /// A process has ended before its clients, although it was not told to cut them and its drain
    /// deadline had not passed.
    ClientsLost,
    /// A process without a successor performed an action that needs a successor.
    NoSuccessor,
}
