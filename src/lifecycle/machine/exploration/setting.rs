//! The settings of one simulation of the lifecycle test: which signals it sends, and what
//! supervises the service.

/// How many signals of each kind the test sends to the simulated processes. It tries every process
/// and every point in time for each signal.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(super) struct SignalBudget {
    /// How many SIGHUPs to send. Each requests a reload.
    pub(super) hangups: u8,
    /// How many SIGTERMs to send. Each requests a stop.
    pub(super) stops: u8,
    /// How many SIGQUITs to send. Each requests a cut of all connections.
    pub(super) cuts: u8,
    /// How many SIGKILLs to send. Each kills a process at once.
    pub(super) crashes: u8,
}

/// The settings of one simulation, which do not change while it runs.
#[derive(Clone, Copy, Debug)]
pub(super) struct Setting {
    pub(super) supervised: bool,
    /// The maximum number of generations that may live at once (`max_generations`).
    pub(super) generations: usize,
    pub(super) budget: SignalBudget,
}
