//! This module decides when to set `TCP_NODELAY`, which turns off Nagle's algorithm (see tcp(7)).

/// How many writes are left until `TCP_NODELAY` is set. The option is set just before the second
/// write. Many connections write only once, so they save the system call for the option.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Delay {
    /// `TCP_NODELAY` is already set, or the connection does not need it.
    None,
    #[cfg_attr(not(feature = "proxy"), expect(dead_code, reason = "only a proxy delays it"))]
    FromTheFirst,
    /// The next write is the second one.
    FromTheSecond,
}

impl Delay {
    /// Calls `set_option` if the next write is the second one. Returns the state after that write.
    pub(super) fn before_write(self, set_option: impl FnOnce()) -> Self {
        match self {
            Self::FromTheFirst => Self::FromTheSecond,
            Self::FromTheSecond => {
                set_option();
                Self::None
            }
            Self::None => Self::None,
        }
    }
}
